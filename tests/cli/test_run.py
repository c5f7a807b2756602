"""`fastpdu run`: the application must not notice that it was not started by `python`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import pytest
from helpers import programs

SHOW = """
import json, sys
print(json.dumps({
    "argv": sys.argv,
    "path0": sys.path[0],
    "name": __name__,
    "file": __file__,
    "package": __package__,
    "main": sys.modules["__main__"].__dict__ is globals(),
    "spec": None if __spec__ is None else __spec__.name,
    "doc": __doc__,
    "loader": type(__loader__).__name__,
}))
"""


def start(
    prefix: list[str], *arguments: str, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *prefix, *arguments],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def run(
    *arguments: str, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return start(["-m", "fastpdu", "run"], *arguments, cwd=cwd, env=env)


def same_as_python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run with us and with the interpreter alone; return ours when both did the same."""
    ours = run(*arguments, cwd=cwd)
    stock = start([], *arguments, cwd=cwd)
    assert ours.returncode == stock.returncode
    assert ours.stdout == stock.stdout
    assert ours.stderr == stock.stderr
    return ours


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "app.py"
    path.write_text('"""Docs."""' + SHOW)
    return path


def test_script_finds_its_world(script: Path, tmp_path: Path) -> None:
    done = same_as_python("sub/app.py", "--help", "-m", "x", "--", "a b", "", cwd=tmp_path)
    assert done.returncode == 0
    assert '"--help", "-m", "x", "--", "a b", ""' in done.stdout
    same_as_python(str(script), cwd=tmp_path)


def test_script_behind_a_symbolic_link(script: Path, tmp_path: Path) -> None:
    try:
        (tmp_path / "link.py").symlink_to(script)
    except OSError:
        pytest.skip("no symbolic links here")
    same_as_python("link.py", cwd=tmp_path)


def test_script_imports_its_neighbours(script: Path, tmp_path: Path) -> None:
    script.with_name("neighbour.py").write_text("value = 42")
    script.write_text("import neighbour; print(neighbour.value)")
    assert same_as_python("sub/app.py", cwd=tmp_path).stdout == "42\n"


def test_module_finds_its_world(tmp_path: Path) -> None:
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").write_text("print('package', __name__)")
    (package / "__main__.py").write_text(SHOW)
    (package / "part.py").write_text("from . import __name__ as parent; print(parent)" + SHOW)
    (tmp_path / "single.py").write_text(SHOW)
    for name in ("pack", "pack.part", "pack.__main__", "single"):
        assert same_as_python("-m", name, "-m", "--version", cwd=tmp_path).returncode == 0
    same_as_python("-msingle", "x", cwd=tmp_path)


def test_directory_and_zip_file(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__main__.py").write_text(SHOW + "import beside\n")
    (tmp_path / "app" / "beside.py").write_text("print('beside')")
    same_as_python("app", "1", cwd=tmp_path)
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        for path in (tmp_path / "app").glob("*.py"):
            archive.write(path, path.name)
    assert "beside" in same_as_python("app.zip", "2", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(7)",
        "import sys; sys.exit()",
        "import sys; sys.exit('a message')",
        "raise SystemExit(0)",
        "import os; os._exit(9)",
        "def f():\n    raise ValueError('wrong')\nf()\n",
        "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise KeyError('x') from error\n",
        "import json\njson.loads('{')\n",
        "import sys\nsys.excepthook = lambda *a: print('hooked', a[0].__name__)\n1 / 0\n",
        "def broken(:\n",
        "import no_such_module_anywhere\n",
        "print('text', end='')\n",
    ],
)
def test_ends_as_with_python(tmp_path: Path, code: str) -> None:
    (tmp_path / "app.py").write_text(code)
    same_as_python("app.py", cwd=tmp_path)


def test_traceback_begins_with_the_application(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("def f():\n    raise ValueError('wrong')\nf()\n")
    for arguments in (["app.py"], ["-m", "app"]):
        done = run(*arguments, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr.count("File ") == 2
        assert "ValueError: wrong" in done.stderr
        assert "fastpdu" not in done.stderr.replace(str(tmp_path), "")


def test_what_outlives_the_script_keeps_its_globals(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        textwrap.dedent(
            """
            import atexit, sys, threading, time
            value = "alive"
            def late():
                time.sleep(0.3)
                import __main__
                print(value, __main__.value)
            threading.Thread(target=late).start()
            atexit.register(lambda: print("exit", sys.modules["__main__"].value))
            """
        )
    )
    assert same_as_python("app.py", cwd=tmp_path).stdout == "alive alive\nexit alive\n"


def test_our_future_imports_are_not_inherited(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("def f(x: int): ...\nprint(f.__annotations__)")
    assert same_as_python("app.py", cwd=tmp_path).stdout == "{'x': <class 'int'>}\n"


def test_source_encoding(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_bytes(b"# -*- coding: latin-1 -*-\nprint(ascii('\xe9'))\n")
    assert same_as_python("app.py", cwd=tmp_path).stdout == "'\\xe9'\n"


@pytest.mark.parametrize("arguments", [["app.py"], ["-m", "app"]])
def test_transport_is_active(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "app.py").write_text(
        textwrap.dedent(
            """
            from pynetdicom import AE
            from pynetdicom.sop_class import Verification
            scp = AE()
            scp.add_supported_context(Verification)
            server = scp.start_server(("127.0.0.1", 0), block=False)
            scu = AE()
            scu.add_requested_context(Verification)
            assoc = scu.associate("127.0.0.1", server.socket.getsockname()[1])
            status = assoc.send_c_echo()
            print(status.Status, type(assoc.dul).__module__)
            assoc.release()
            server.shutdown()
            """
        )
    )
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0 fastpdu")


def test_environment_sets_the_options(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("print('ran')")
    good = run("app.py", cwd=tmp_path, env={"FASTPDU_QUICKACK": "0"})
    assert (good.returncode, good.stdout) == (0, "ran\n")
    (tmp_path / "show.py").write_text(
        "import fastpdu\nprint(fastpdu.AE().transport.max_pdu, fastpdu.AE().transport.user_timeout)"
    )
    shown = run("show.py", cwd=tmp_path, env={"FASTPDU_MAX_PDU": "65536"})
    assert (shown.returncode, shown.stdout) == (0, "65536 None\n"), shown.stderr
    bad = run("app.py", cwd=tmp_path, env={"FASTPDU_QUICKACK": "perhaps"})
    assert bad.returncode == 2
    assert bad.stdout == ""
    assert "FASTPDU_QUICKACK" in bad.stderr
    assert "remedy" in bad.stderr
    assert "Traceback" not in bad.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ([], 2, "what shall be run"),
        (["-m"], 2, "name of a module"),
        (["--fast", "x.py"], 2, "unknown option --fast"),
        (["none.py"], 2, "can't open file 'none.py'"),
        (["-m", "no_such_module"], 1, "no module named 'no_such_module'"),
        (["-m", "no_such_package.part"], 1, "no module named 'no_such_package'"),
        (["-m", "json.no_such_part"], 1, "no module named 'json.no_such_part'"),
        (["-m", "email"], 1, "'email' is a package and cannot be directly executed"),
        (["empty"], 1, "can't find '__main__'"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: list[str], status: int, text: str) -> None:
    (tmp_path / "empty").mkdir()
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == status
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_help_is_ours_only_before_the_script(tmp_path: Path) -> None:
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "-m MODULE" in done.stdout
    assert "examples:" in done.stdout


def test_missing_import_of_the_module_itself_is_shown(tmp_path: Path) -> None:
    # Not "no module named pack": that one is there.
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("import no_such_module_anywhere")
    (tmp_path / "pack" / "__main__.py").write_text("")
    done = run("-m", "pack", cwd=tmp_path)
    assert done.returncode == 1
    assert "No module named 'no_such_module_anywhere'" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs SIGINT")
def test_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(30)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "fastpdu", "run", "app.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=programs.PREEXEC,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "KeyboardInterrupt" in errors
    assert "runpy" not in errors
    assert "commands" not in errors
