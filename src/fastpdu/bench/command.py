"""The command line of the benchmarks: `fastpdu bench`, and the scripts in `benchmarks/`."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from fastpdu.bench import QUESTIONS
from fastpdu.bench.options import positive

DEFAULT = "ct1000"


def _parser(name: str, prog: str) -> argparse.ArgumentParser:
    question: Any = importlib.import_module(f"fastpdu.bench.{name}")
    listing = ""
    if name == DEFAULT and prog.startswith("fastpdu"):
        listing = "\n\nother questions (fastpdu bench NAME --help):\n" + "\n".join(
            f"  {other:<14}{importlib.import_module(f'fastpdu.bench.{other}').SUMMARY}"
            for other in QUESTIONS
            if other != DEFAULT
        )
    parser = argparse.ArgumentParser(
        prog=prog,
        description=question.DESCRIPTION,
        epilog=question.EXAMPLES.rstrip() + listing,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    question.add_arguments(parser)
    if not any(action.dest == "runs" for action in parser._actions):
        parser.add_argument(
            "--runs",
            type=positive,
            default=getattr(question, "RUNS", 5),
            metavar="N",
            help="how often to measure; medians are reported (default: %(default)s)",
        )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write the figures (JSON) and a chart (PNG) to DIR"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--quiet", action="store_true", help="do not show progress")
    parser.add_argument(
        "--check", action="store_true", help="exit with 1 if one of the project's goals is missed"
    )
    return parser


def _terminated(signum: int, frame: FrameType | None) -> None:
    # Like Ctrl-C: temporary files and child processes are cleared away on the way out.
    raise SystemExit(128 + signum)


def main(arguments: Sequence[str], *, prog: str = "fastpdu bench") -> int:
    """Run one benchmark.

    Parameters
    ----------
    arguments : sequence of str
        The name of a benchmark (without one: `ct1000`), and its options.
    prog : str
        The name for the help text.

    Returns
    -------
    int
        0, or 1 if `--check` was given and a goal was missed.
    """
    rest = list(arguments)
    name = DEFAULT
    if rest and rest[0] in QUESTIONS:
        name = rest.pop(0)
        if prog == "fastpdu bench":
            prog = f"{prog} {name}"
    return run(name, rest, prog=prog)


def run(name: str, arguments: Sequence[str], *, prog: str) -> int:
    """Run the benchmark `name`; see `main`."""
    args = _parser(name, prog).parse_args(list(arguments))
    question: Any = importlib.import_module(f"fastpdu.bench.{name}")
    from fastpdu.bench import report as reports

    if hasattr(question, "check_arguments"):
        question.check_arguments(args)
    if args.out is not None:
        reports.require_matplotlib()
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminated) if in_main_thread else None
    try:
        result: reports.Report = question.run(args)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    prefix = [] if name == DEFAULT else [name]
    result.command = reports.command_line([*prefix, *arguments])
    reports.emit(result, out=args.out, as_json=args.json)
    if not result.goals_met and args.check:
        print(f"{prog}: a goal was missed", file=sys.stderr)
        return 1
    return 0


def script(name: str) -> int:
    """Run the benchmark `name` as a program of its own: `benchmarks/<name>.py`."""
    from fastpdu.cli import guarded

    prog = f"{name}.py"
    return guarded(lambda: run(name, sys.argv[1:], prog=prog), prog)
