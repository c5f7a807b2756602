"""TransportOptions: every knob of the transport, with its default and its trade-off."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass

ENVIRONMENT_PREFIX = "FASTPDU_"


@dataclass(frozen=True)
class TransportOptions:
    """How an association moves its bytes. Immutable; validated when it is made.

    Parameters
    ----------
    nodelay : bool, default True
        TCP_NODELAY: a message leaves at once. Without it Nagle's algorithm holds back the tail of a message until
        the peer has acknowledged what went before, which costs up to 40 ms each time the peer delays its ACK.
    quickack : bool, default True
        TCP_QUICKACK, set again before each wait (Linux; elsewhere it has no effect): our ACKs leave at once, so a
        peer that writes with Nagle's algorithm on does not wait for them. Costs one cheap system call per wait.
    send_buffer, receive_buffer : int, optional
        SO_SNDBUF and SO_RCVBUF in bytes. None (default) leaves them to the kernel, which then tunes them to the
        link; a fixed size switches that off for the socket, so it helps only where memory must be bounded.
    max_message : int, default 0
        Bytes of the largest data set that is accepted; 0: no limit. A longer one is answered with an A-ABORT.
    send_timeout : float or None, optional
        Seconds for which a peer may take no data while we send. By default the association's network timeout.
    pdu_timeout : float or None, optional
        Seconds that a PDU may take from its first byte to its last. By default the association's network timeout.

    Raises
    ------
    TypeError, ValueError
        If a value does not fit; the message names the option.
    """

    nodelay: bool = True
    quickack: bool = True
    send_buffer: int | None = None
    receive_buffer: int | None = None
    max_message: int = 0
    send_timeout: float | None = None
    pdu_timeout: float | None = None

    def __post_init__(self) -> None:
        for name in ("nodelay", "quickack"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, not {getattr(self, name)!r}")
        for name in ("send_buffer", "receive_buffer"):
            _check_int(name, getattr(self, name), 1, optional=True)
        _check_int("max_message", self.max_message, 0)
        for name in ("send_timeout", "pdu_timeout"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number of seconds or None, not {value!r}")
            if not value > 0:
                raise ValueError(f"{name} must be more than 0 seconds, not {value!r}")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> TransportOptions:
        """Make options from ``FASTPDU_<OPTION>`` variables, for instance ``FASTPDU_QUICKACK=0``.

        Parameters
        ----------
        environ : mapping of str to str, optional
            The environment, by default that of the process.

        Returns
        -------
        TransportOptions
            The defaults, changed where a variable is set and not empty.

        Raises
        ------
        ValueError
            If a variable does not hold a value for its option; the message names the variable.
        """
        environ = os.environ if environ is None else environ
        found: dict[str, object] = {}
        for field in dataclasses.fields(cls):
            variable = ENVIRONMENT_PREFIX + field.name.upper()
            text = environ.get(variable, "").strip()
            if not text:
                continue
            try:
                found[field.name] = _parse(field.name, text)
                cls(**{field.name: found[field.name]})  # type: ignore[arg-type]
            except (TypeError, ValueError) as error:
                raise ValueError(f"{variable}={text}: {error}") from error
        return cls(**found)  # type: ignore[arg-type]


def _check_int(name: str, value: object, least: int, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int{' or None' if optional else ''}, not {value!r}")
    if not least <= value < 2**63:
        raise ValueError(f"{name} must be at least {least}, not {value!r}")


def _parse(name: str, text: str) -> object:
    """Convert the text of an environment variable to the type of its option."""
    if name in ("nodelay", "quickack"):
        states = {
            "1": True,
            "true": True,
            "yes": True,
            "on": True,
            "0": False,
            "false": False,
            "no": False,
            "off": False,
        }
        try:
            return states[text.lower()]
        except KeyError:
            raise ValueError("must be 1 or 0") from None
    if name in ("send_timeout", "pdu_timeout"):
        return float(text)
    return int(text)
