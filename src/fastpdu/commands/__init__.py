"""The subcommands of the `fastpdu` program, one module each.

A subcommand's module has `main(argv, prog) -> int`: `argv` is what follows its name, `prog` is how
it calls itself in messages, the result is the exit status. Errors that the user can do something
about are raised as `CommandError`. What those that talk to a peer share is in `peer`.
"""

from __future__ import annotations

__all__ = ["CommandError"]


class CommandError(Exception):
    """Something that the user has to know, and a traceback would only hide.

    Parameters
    ----------
    message : str
        What is wrong.
    remedy : str, optional
        What the user can do about it.
    status : int
        The exit status: 1 failure, 2 wrong usage, others where a command has them.
    """

    def __init__(self, message: str, remedy: str | None = None, status: int = 1) -> None:
        super().__init__(message)
        self.remedy = remedy
        self.status = status
