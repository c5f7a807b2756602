"""The `fastpdu` program: finds the subcommand and reports its errors.

Each subcommand is one module of `fastpdu.commands`, imported when it is asked for, with a function
`main(argv, prog) -> int`. A new one needs its line in `COMMANDS` and nothing else here.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from typing import Any

from fastpdu.commands import CommandError

#: Name and one line about each subcommand, in the order of the help text.
COMMANDS = {
    "run": "run an unmodified pynetdicom application on the fast transport",
    "bench": "measure 1000 CT images beside stock pynetdicom and the raw-socket floor",
    "send": "send files and directories to a peer, and go on after a failure",
    "recv": "receive instances into files",
    "echo": "C-ECHO a peer and show the latencies",
    "doctor": "find out where the time goes between us and a peer, and what helps",
}
EXAMPLES = """\
examples:
  fastpdu run my_pacs.py --port 11112       like: python my_pacs.py --port 11112
  fastpdu run -m pynetdicom storescp 11112  like: python -m pynetdicom storescp 11112
  fastpdu bench                             is it fast on this machine?
  fastpdu send pacs.example 104 study/      send a directory
  fastpdu recv 11112 received/              store what comes into files
  fastpdu echo pacs.example 104 -aec PACS   is the peer there?
  fastpdu doctor pacs.example 104           why is it slow?
  fastpdu COMMAND --help                    all about a command

exit status: 0 success, 1 failure, 2 wrong usage, 130 interrupted (Ctrl-C).
'fastpdu run' exits as the application does; 'send', 'echo' and 'doctor' have more (--help).
"""
FAILURE, USAGE, INTERRUPTED = 1, 2, 130


def _version() -> str:
    import fastpdu

    parts = [f"fastpdu {getattr(fastpdu, '__version__', '(unknown version)')}"]
    try:
        from fastpdu import engine
    except ImportError:
        pass
    else:
        parts.append(f"{engine.BACKEND} engine")
    for package in ("pynetdicom", "pydicom"):
        try:
            parts.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            parts.append(f"{package} not installed")
    parts.append(f"Python {sys.version.split()[0]}")
    return ", ".join(parts)


class _Version(argparse.Action):
    """Like the action "version", but looks the versions up only when somebody asks."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(_version())
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="fastpdu",
        usage="fastpdu [--help] [--version] COMMAND ...",
        description=f"A fast drop-in transport for pynetdicom.\n\ncommands:\n{listing}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "-V", "--version", action=_Version, nargs=0, help="show the versions and exit"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments without the name of the program; default: those of this process.

    Returns
    -------
    int
        The exit status.
    """
    _open_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Everything after the command belongs to the command, even what looks like an option of ours.
    at = next((i for i, text in enumerate(arguments) if not text.startswith("-")), len(arguments))
    parser = _parser()
    parser.parse_args(arguments[:at])
    if at == len(arguments):
        parser.print_help(sys.stderr)
        return USAGE
    name = arguments[at]
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(COMMANDS)}"
        parser.error(f"no command {name!r}: {hint}")
    command: Any = importlib.import_module(f"fastpdu.commands.{name}")
    prog = f"fastpdu {name}"
    return guarded(lambda: command.main(arguments[at + 1 :], prog), prog)


def _open_streams() -> None:
    """Put the null device where a standard stream is closed, as in ``<&-``: no file or socket takes its number then."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def guarded(function: Any, prog: str) -> int:
    """Call a command and turn the errors that a user can act on into messages.

    Parameters
    ----------
    function : callable
        Returns an exit status.
    prog : str
        Who is speaking.

    Returns
    -------
    int
        The exit status.
    """
    try:
        status: int = function()
        sys.stdout.flush()
        return status
    except CommandError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        if error.remedy:
            print(f"{' ' * len(prog)}  remedy: {error.remedy}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output, `head` for instance, has seen enough. Without this the
        # interpreter would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE


if __name__ == "__main__":
    sys.exit(main())
