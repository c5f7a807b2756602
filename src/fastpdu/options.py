"""TransportOptions: every knob of the transport, with its default and its trade-off."""

from __future__ import annotations

import dataclasses
import math
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fastpdu import engine

ENVIRONMENT_PREFIX = "FASTPDU_"

_INT_MAX = 2**31 - 1
_STATES = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


# Kinds of values ------------------------------------------------------------------------------------------------


class _Kind(Protocol):
    """What an option may hold."""

    def check(self, name: str, value: Any) -> None:
        """Raise TypeError or ValueError, with the name of the option, if `value` does not fit."""

    def parse(self, text: str) -> object:
        """Convert the text of an environment variable; ValueError if that is not possible."""


class _Flag:
    """True or False."""

    def check(self, name: str, value: Any) -> None:
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, not {value!r}")

    def parse(self, text: str) -> object:
        try:
            return _STATES[text.lower()]
        except KeyError:
            raise ValueError("must be 1 or 0") from None


@dataclass(frozen=True)
class _Whole:
    """An int from `least` to `most`, or one of `others`."""

    unit: str
    least: int
    most: int
    others: tuple[int, ...] = ()

    def check(self, name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int ({self.unit}), not {value!r}")
        if value not in self.others and not self.least <= value <= self.most:
            others = "".join(f"{other} or " for other in self.others)
            raise ValueError(
                f"{name} must be {others}{self.least} to {self.most} {self.unit}, not {value!r}"
            )

    def parse(self, text: str) -> object:
        return int(text)


@dataclass(frozen=True)
class _Seconds:
    """A number of seconds, more than 0, at most `most`."""

    most: float = math.inf

    def check(self, name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a number of seconds, not {value!r}")
        if not 0 < value <= self.most:
            limit = "" if self.most == math.inf else f", at most {self.most}"
            raise ValueError(f"{name} must be more than 0 seconds{limit}, not {value!r}")

    def parse(self, text: str) -> object:
        return float(text)


class _Name:
    """A name that the kernel knows."""

    def check(self, name: str, value: Any) -> None:
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a str, not {value!r}")
        # TCP_CA_NAME_MAX of Linux is 16, with the NUL
        if not value or len(value) > 15 or not value.isascii() or not value.isprintable():
            raise ValueError(f"{name} must be 1 to 15 ASCII characters, not {value!r}")

    def parse(self, text: str) -> object:
        return text


def _has(constant: str) -> bool:
    """Whether this platform has a socket option."""
    return engine.CAN_CORK if constant == "TCP_CORK" else hasattr(socket, constant)


def _option(kind: _Kind, default: object = None, needs: tuple[str, ...] = ()) -> Any:
    """Return the field of an option, None of which is valid if it is the default.

    Parameters
    ----------
    kind : _Kind
        What it may hold.
    default : object, optional
        Its default.
    needs : tuple of str, optional
        Socket options of which the platform must have one if this option is asked for.
    """
    return dataclasses.field(default=default, metadata={"kind": kind, "needs": needs})


# The options ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TransportOptions:
    """How an association moves its bytes. Immutable; validated when it is made.

    None leaves the choice to the defaults described here. Asking for something that this platform does not have is
    an error; a default that it does not have is left out.

    Parameters
    ----------
    nodelay : bool, optional
        TCP_NODELAY: a message leaves at once. Without it Nagle's algorithm holds back the tail of a message until
        the peer has acknowledged what went before, which costs up to 40 ms each time the peer delays its ACK.
        By default on.
    quickack : bool, optional
        TCP_QUICKACK, set again before each wait that follows a read (Linux): our ACKs leave at once, so a peer that
        writes with Nagle's algorithm on does not wait for them. Costs one cheap system call per wait, and some
        segments that carry nothing but an ACK. By default on where the platform has it.
    busy_wait : bool, optional
        Where the last message came within 0.4 ms, look for the next one for as long before sleeping: to wake a thread
        may take as long as an answer, above all on virtual machines. One thread of the process at a time, while no more
        than two connections of the process have messages, and not while `send_c_store_many` has several in flight.
        Others that want the CPU get it meanwhile (sched_yield), but the time counts: against the quota of a container,
        for instance. By default on; never done where the process may use one CPU only, on Windows, or in pure Python.
    cork : bool, default False
        TCP_CORK, elsewhere TCP_NOPUSH: where one message takes several system calls, no segment leaves half full
        between them. Taken back at the end of each message and before each wait. A message is mostly one
        system call, so this gains something over TLS, for very small PDUs and for large files, in the number of
        segments; it costs two system calls for each such message, and the first bytes leave later.
    send_buffer, receive_buffer : int, optional
        SO_SNDBUF and SO_RCVBUF in bytes (the kernel may round them, and caps them: net.core.wmem_max, rmem_max).
        None (default) leaves them to the kernel, which then tunes them to the link; a fixed size switches that off
        for the socket, so it helps only where memory must be bounded. The receive buffer is set before the connection
        is made, since it decides how large the TCP window can be: on a server, on the socket that listens.
    max_segment : int, optional
        TCP_MAXSEG in bytes: the largest segment, announced to the peer when the connection is made. Helps against
        a path that drops large packets without saying so, and to make loopback behave like a network. Smaller
        segments cost CPU and headers.
    congestion_control : str, optional
        TCP_CONGESTION: the name of the kernel's algorithm, for instance "bbr" for long or lossy links. It must be
        loaded, and allowed for the user (net.ipv4.tcp_allowed_congestion_control).
    keepalive : int, optional
        SO_KEEPALIVE with the seconds of silence after which the kernel asks the peer for a sign of life (three
        times, a third of that apart). Keeps firewalls from forgetting an idle association, and ends one whose peer has
        vanished; costs a segment each time. By default the system's setting: mostly off.
    user_timeout : float, optional
        TCP_USER_TIMEOUT in seconds: how long data may stay without an ACK before the kernel gives the connection
        up. By default that takes a quarter of an hour; a value below the longest outage to be survived
        ends associations that would have recovered. It overrides the number of `keepalive` probes.
    notsent_lowat : int, optional
        TCP_NOTSENT_LOWAT in bytes: no more than this waits in the kernel without having been sent. Less memory per
        association, and an A-ABORT or a C-CANCEL waits behind fewer bytes; too small a value costs system calls
        and throughput.
    pack_command : bool, default False
        The command set and the first fragment of the data set share a P-DATA-TF PDU (PS3.8 E.1), as far as there is
        room in it. Saves 6 bytes and one PDU per message; some peers cannot read it. It applies to what the engine
        frames: not to an association whose PDUs somebody watches (docs/switching-on.md).
    max_pdu : int, optional
        The maximum length that we announce (PS3.8 D.1), in bytes; 0: no limit (a PDU above 16 MiB is refused
        nevertheless). It takes the place of pynetdicom's default, 16382: any other value of
        ``AE.maximum_pdu_size`` or ``associate(max_pdu=)`` wins. Larger PDUs cost the peer memory, and save
        little here.
    max_message : int, default 0
        Bytes of the largest data set that is accepted; 0: no limit. A longer one is answered with an A-ABORT.
    send_timeout : float, optional
        Seconds for which a peer may take no data while we send. By default the association's network timeout.
    pdu_timeout : float, optional
        Seconds that a PDU may take from its first byte to its last. By default the association's network timeout, or
        its DIMSE timeout if that is shorter and an answer is waited for.
    async_window : int, optional
        The asynchronous operations window (PS3.7 D.3.3.3): as requestor we offer to invoke so many operations before
        the first is answered, which `send_c_store_many` does where the peer agrees; as acceptor we agree to as many.
        Makes up for long round trips. Some devices drop a connection on which it is offered. By default, and with 1,
        none is.
    handler_threads : int, optional
        As acceptor, the C-STORE requests of one association whose handlers may run at the same time, as far as the
        window that was negotiated allows it. The handlers must be prepared for it, and responses leave in any order.
        By default they run one after the other, on the association's thread.

    Raises
    ------
    TypeError, ValueError
        If a value does not fit, or the platform lacks what is asked for; the message names the option.
    """

    nodelay: bool | None = _option(_Flag(), needs=("TCP_NODELAY",))
    quickack: bool | None = _option(_Flag(), needs=("TCP_QUICKACK",))
    busy_wait: bool | None = _option(_Flag())
    cork: bool = _option(_Flag(), default=False, needs=("TCP_CORK",))
    send_buffer: int | None = _option(_Whole("bytes", 1, _INT_MAX))
    receive_buffer: int | None = _option(_Whole("bytes", 1, _INT_MAX))
    max_segment: int | None = _option(_Whole("bytes", 1, 65535), needs=("TCP_MAXSEG",))
    congestion_control: str | None = _option(_Name(), needs=("TCP_CONGESTION",))
    keepalive: int | None = _option(
        _Whole("seconds", 1, 32767), needs=("TCP_KEEPIDLE", "TCP_KEEPALIVE")
    )
    user_timeout: float | None = _option(_Seconds(_INT_MAX // 1000), needs=("TCP_USER_TIMEOUT",))
    notsent_lowat: int | None = _option(_Whole("bytes", 1, _INT_MAX), needs=("TCP_NOTSENT_LOWAT",))
    pack_command: bool = _option(_Flag(), default=False)
    max_pdu: int | None = _option(_Whole("bytes", engine.MIN_PDU, engine.HARD_PDU_CAP, others=(0,)))
    max_message: int = _option(_Whole("bytes", 0, 2**63 - 1), default=0)
    send_timeout: float | None = _option(_Seconds())
    pdu_timeout: float | None = _option(_Seconds())
    async_window: int | None = _option(_Whole("operations", 1, 65535))
    handler_threads: int | None = _option(_Whole("threads", 1, 1024))

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            field.metadata["kind"].check(field.name, value)
            needs = field.metadata["needs"]
            if needs and value is not False and not any(map(_has, needs)):
                raise ValueError(
                    f"{field.name}={value!r} is not possible: this platform has no {needs[0]}"
                )

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
        found: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            variable = ENVIRONMENT_PREFIX + field.name.upper()
            text = environ.get(variable, "").strip()
            if not text:
                continue
            parse: Callable[[str], object] = field.metadata["kind"].parse
            try:
                found[field.name] = parse(text)
                cls(**{field.name: found[field.name]})
            except (TypeError, ValueError) as error:
                raise ValueError(f"{variable}={text}: {error}") from error
        return cls(**found)


# Whose options hold ---------------------------------------------------------------------------------------------

_DEFAULTS = TransportOptions()
_process_wide: TransportOptions | None = None


def process_wide() -> TransportOptions | None:
    """Return the options of `fastpdu.install`, None while it is not in force."""
    return _process_wide


def set_process_wide(options: TransportOptions | None) -> None:
    """Set the options of `fastpdu.install`; None when it ends."""
    global _process_wide
    _process_wide = options


def checked(options: object, name: str = "transport") -> TransportOptions | None:
    """Return an argument that is to be options or None.

    Parameters
    ----------
    options : object
        The argument.
    name : str, optional
        Its name.

    Raises
    ------
    TypeError
        If it is something else.
    """
    if options is not None and not isinstance(options, TransportOptions):
        raise TypeError(f"{name} must be a TransportOptions, not {type(options).__name__}")
    return options


def options_of(*owners: object) -> TransportOptions:
    """Return the options of the first owner that has some, else those of the process, else the defaults.

    Parameters
    ----------
    *owners : object
        Servers or application entities; the options of one are its attribute ``transport``.

    Returns
    -------
    TransportOptions
        The options. Those of two owners are not mixed.
    """
    for owner in owners:
        options = getattr(owner, "transport", None)
        if isinstance(options, TransportOptions):
            return options
    return _process_wide or _DEFAULTS
