"""`fastpdu run`: an unmodified application on the fast transport.

The application has to find the world as `python SCRIPT` or `python -m MODULE` would have shown it:
its own `sys.argv` and `sys.path[0]`, a fresh `__main__`, its own exit status, and tracebacks that
begin with its own code. `runpy` does most of it, but takes its `__main__` away again when the code
has run, while threads and exit handlers of the application may still be using it (a `start_server`
with `block=False`, for instance). So `__main__` is made here and stays.
"""

from __future__ import annotations

import argparse
import builtins
import importlib.machinery
import importlib.util
import io
import os
import pkgutil
import sys
import types
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader

from fastpdu.commands import CommandError, environment

USAGE = "fastpdu run [--help] (SCRIPT | -m MODULE) [ARGS ...]"
DESCRIPTION = """\
Runs a pynetdicom application on the fast transport without changing it: installs the transport
into pynetdicom, then runs SCRIPT (a file, or a directory or zip file with a __main__.py) or MODULE
as 'python SCRIPT ARGS' or 'python -m MODULE ARGS' would. Everything after SCRIPT or MODULE goes to
the application untouched.
"""
EXAMPLES = """\
examples:
  fastpdu run my_pacs.py --port 11112
  fastpdu run -m pynetdicom storescp 11112 --output-directory received
  FASTPDU_QUICKACK=0 FASTPDU_MAX_PDU=131072 fastpdu run -m my_router --config router.toml

The transport is set up with the FASTPDU_* environment variables, as described in docs/tuning.md.
A process that the application starts with subprocess or with multiprocessing's "spawn" method is a
new Python, and has the stock transport; one that it forks has the fast one.

exit status: that of the application; 2 if there is nothing to run.
"""

#: Code, spec if it has one, file, and what `sys.argv[0]` shall be.
_Application = tuple[types.CodeType, "ModuleSpec | None", str, str]


def _help() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog="fastpdu run",
        usage=USAGE,
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def main(argv: Sequence[str], prog: str = "fastpdu run") -> int:
    """Run an application.

    Parameters
    ----------
    argv : sequence of str
        SCRIPT or -m MODULE, and the application's arguments.
    prog : str
        The name for messages.

    Returns
    -------
    int
        The exit status, if the application does not raise `SystemExit` itself.
    """
    arguments = list(argv)
    parser = _help()
    if not arguments:
        parser.error("what shall be run? Give a script, or -m and a module")
    first = arguments[0]
    if first in ("-h", "--help"):
        parser.print_help()
        return 0
    # As Python: -m MODULE and -mMODULE.
    if first.startswith("-m"):
        rest = arguments[1:]
        module = first[2:]
        if not module:
            if not rest:
                parser.error("-m needs the name of a module")
            module = rest.pop(0)
        _install()
        return _run(lambda: _load_module(module), rest)
    if first == "--":
        arguments.pop(0)
        if not arguments:
            parser.error("what shall be run? Give a script, or -m and a module")
    elif first.startswith("-"):
        parser.error(f"unknown option {first}; options of the application come after its name")
    script = arguments[0]
    _install()
    return _run(lambda: _load_script(script), arguments[1:])


def _install() -> None:
    import fastpdu

    try:
        fastpdu.install(environment.options())
    except (ImportError, RuntimeError) as error:
        # pynetdicom is missing, or a version that this transport does not know.
        raise CommandError(
            f"the transport cannot be installed: {error}",
            "pip install 'pynetdicom>=3.0.4,<3.1', or run the application without fastpdu",
        ) from error


def _set_path(entry: str) -> None:
    """Put the application's directory where the interpreter has put ours."""
    # python -P, python -I and PYTHONSAFEPATH leave the directory out.
    if getattr(sys.flags, "safe_path", False) or sys.flags.isolated:
        return
    if sys.path:
        sys.path[0] = entry
    else:
        sys.path.append(entry)


def _load_script(script: str) -> _Application:
    """Return the code of a script, and set `sys.path[0]` for it."""
    # As the interpreter makes it absolute: joined, not normalized.
    path = os.path.join(os.getcwd(), script)
    importer = pkgutil.get_importer(path)
    if importer is not None and _is_container(path, importer):
        _set_path(path)
        spec = PathFinder.find_spec("__main__", [path])
        if spec is None:
            raise CommandError(f"can't find '__main__' module in {script!r}")
        return _code_of(spec.loader, "__main__"), spec, spec.origin or path, script
    try:
        with io.open_code(path) as file:
            data = file.read()
    except OSError as error:
        raise CommandError(
            f"can't open file {script!r}: {error.strerror}",
            "check the path, or use -m if it is the name of a module",
            status=2,
        ) from error
    _set_path(os.path.dirname(os.path.realpath(path)))
    if data.startswith(importlib.util.MAGIC_NUMBER):
        compiled = importlib.machinery.SourcelessFileLoader("__main__", path)
        return _code_of(compiled, "__main__"), None, path, script
    # Without dont_inherit the application would get our __future__ imports.
    return compile(data, path, "exec", dont_inherit=True), None, path, script


def _is_container(path: str, importer: object) -> bool:
    return os.path.isdir(path) or not isinstance(importer, importlib.machinery.FileFinder)


def _load_module(name: str) -> _Application:
    """Return the code of a module, and set `sys.path[0]` for it."""
    _set_path(os.getcwd())
    if name.startswith("."):
        raise CommandError("relative module names are not supported", status=2)
    spec = _find(name)
    if spec.submodule_search_locations is not None:
        if spec.loader is not None and name != "__main__" and not name.endswith(".__main__"):
            package = name
            name = f"{name}.__main__"
            # A package is imported before it is run, as the interpreter does it.
            importlib.import_module(package)
            try:
                spec = _find(name)
            except CommandError as error:
                raise CommandError(
                    f"{error}; {package!r} is a package and cannot be directly executed"
                ) from None
        else:
            raise CommandError(f"{name!r} is a package and cannot be directly executed")
    file = spec.origin or name
    return _code_of(spec.loader, name), spec, file, file


def _find(name: str) -> ModuleSpec:
    parent = name.rpartition(".")[0]
    if parent:
        try:
            importlib.import_module(parent)
        except ModuleNotFoundError as error:
            # Only if it is the parent that is missing, not something that it imports.
            if error.name is None or not (parent + ".").startswith(error.name + "."):
                raise
            raise CommandError(
                f"no module named {error.name!r}", "check the name, or install the package"
            ) from None
    try:
        spec = importlib.util.find_spec(name)
    except (ValueError, ModuleNotFoundError):
        spec = None
    if spec is None:
        raise CommandError(f"no module named {name!r}", "check the name, or install the package")
    return spec


def _code_of(loader: object, name: str) -> types.CodeType:
    # zipimport's loader is an InspectLoader by its methods only.
    get_code = getattr(loader, "get_code", None)
    code = None if get_code is None else get_code(name)
    if not isinstance(code, types.CodeType):
        raise CommandError(f"no code object available for {name}")
    return code


def _run(load: Callable[[], _Application], arguments: list[str]) -> int:
    """Load an application and execute it as `__main__`."""
    try:
        code, spec, file, name = load()
    except (CommandError, KeyboardInterrupt):
        raise
    except BaseException as error:
        # A syntax error of the script, or an error of its package's __init__.
        return _report(error)
    module = types.ModuleType("__main__")
    names = module.__dict__
    names["__builtins__"] = builtins
    names["__file__"] = file
    names["__cached__"] = None if spec is None else spec.cached
    names["__package__"] = None if spec is None else spec.parent
    names["__spec__"] = spec
    names["__loader__"] = SourceFileLoader("__main__", file) if spec is None else spec.loader
    sys.modules["__main__"] = module
    sys.argv[:] = [name, *arguments]
    try:
        exec(code, names)
    except SystemExit:
        raise
    except BaseException as error:
        return _report(error)
    return 0


def _report(error: BaseException) -> int:
    """Show a traceback as the interpreter would, and return the exit status."""
    if isinstance(error, SystemExit):
        raise error
    traceback = error.__traceback__
    # Leave out this module, and the import system on the way to the application.
    while traceback is not None and _is_ours(traceback.tb_frame.f_code.co_filename):
        traceback = traceback.tb_next
    error.__traceback__ = traceback
    sys.excepthook(type(error), error, traceback)
    sys.stderr.flush()
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _is_ours(filename: str) -> bool:
    return filename == __file__ or filename.startswith("<frozen ") or filename == importlib.__file__
