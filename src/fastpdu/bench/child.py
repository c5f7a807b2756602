"""Parts of a benchmark in a process of their own.

A child is a new interpreter ("spawn"), not a fork: it has no threads, no memory and no sockets of
its parent, so what is measured in it is its own.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from fastpdu.bench.errors import BenchError

__all__ = ["Child", "call", "child"]


class Child:
    """A running child process, and the pipe to it.

    Parameters
    ----------
    pipe : Connection
        Our end.
    process : multiprocessing process
        The child.
    """

    def __init__(self, pipe: Connection, process: Any) -> None:
        self._pipe = pipe
        self._process = process

    @property
    def pid(self) -> int:
        """The number of the process."""
        return int(self._process.pid)

    def send(self, value: object) -> None:
        """Give the child something."""
        self._pipe.send(value)

    def receive(self, patience: float = 300.0) -> Any:
        """Return the next thing that the child gives.

        Raises
        ------
        BenchError
            If it fails, ends, or says nothing in time.
        """
        if not self._pipe.poll(patience):
            raise BenchError(f"a child process said nothing for {patience:g} s")
        try:
            kind, value = self._pipe.recv()
        except EOFError:
            self._process.join(5)
            raise BenchError(
                f"a child process ended early (exit status {self._process.exitcode})"
            ) from None
        if kind == "error":
            raise BenchError(f"a child process failed:\n{value}")
        return value

    def ask(self, value: object, patience: float = 300.0) -> Any:
        """Give the child something and return its answer."""
        self.send(value)
        return self.receive(patience)


def _main(
    pipe: Connection, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:  # pragma: no cover - runs in the child
    def give(value: object) -> None:
        pipe.send(("value", value))

    try:
        function(give, pipe.recv, *arguments)
    except (EOFError, KeyboardInterrupt):
        # The parent is gone, or Ctrl-C reached the whole process group: it is the parent's to say.
        pass
    except BaseException:
        with contextlib.suppress(OSError):
            pipe.send(("error", traceback.format_exc()))


@contextlib.contextmanager
def child(function: Callable[..., None], *arguments: Any) -> Iterator[Child]:
    """Run a function in a new interpreter.

    Parameters
    ----------
    function : callable
        Called as `function(give, take, *arguments)`: `give(value)` hands a value to the parent,
        `take()` waits for one from it. It has to be importable.
    *arguments
        Anything that can be pickled.

    Yields
    ------
    Child
        It is stopped at the end of the `with` block.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(theirs, function, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Child(ours, process)
    finally:
        ours.close()
        process.join(10)
        if process.is_alive():
            process.terminate()
            process.join(5)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()


def _call(
    give: Callable[[object], None], take: Callable[[], Any], function: Any, arguments: Any
) -> None:
    give(function(*arguments))


def call(function: Callable[..., Any], *arguments: Any, patience: float = 300.0) -> Any:
    """Return what a function returns in a process of its own."""
    with child(_call, function, arguments) as running:
        return running.receive(patience)
