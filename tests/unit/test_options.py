"""TransportOptions: what is accepted, where it comes from, and what it does to a socket."""

from __future__ import annotations

import dataclasses
import errno
import inspect
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastpdu
from fastpdu import TransportOptions, engine, options, transport

NAMES = [field.name for field in dataclasses.fields(TransportOptions)]


def same(names: tuple[str, ...], values: list[Any]) -> dict[str, list[Any]]:
    """Return the same values for several options."""
    return {name: list(values) for name in names}


# A value that each option takes on any platform that has it, and its text in the environment
GOOD: dict[str, tuple[Any, str]] = {
    "nodelay": (False, "0"),
    "quickack": (False, "off"),
    "busy_wait": (False, "no"),
    "cork": (True, "yes"),
    "send_buffer": (65536, "65536"),
    "receive_buffer": (1, "1"),
    "max_segment": (1400, "1400"),
    "congestion_control": ("reno", "reno"),
    "keepalive": (30, "30"),
    "user_timeout": (12.5, "12.5"),
    "notsent_lowat": (131072, "131072"),
    "pack_command": (True, "TRUE"),
    "max_pdu": (0, "0"),
    "max_message": (10**12, "1000000000000"),
    "send_timeout": (0.5, "0.5"),
    "pdu_timeout": (7.0, " 7 "),
    "async_window": (8, "8"),
    "handler_threads": (4, "4"),
}
BAD_TYPES: dict[str, list[Any]] = {
    **same(("nodelay", "quickack", "busy_wait", "cork", "pack_command"), [1, "on", 0.0]),
    **same(
        (
            "send_buffer",
            "receive_buffer",
            "max_segment",
            "keepalive",
            "notsent_lowat",
            "max_pdu",
            "async_window",
            "handler_threads",
        ),
        [True, 1.0, "1"],
    ),
    "congestion_control": [b"reno", 1, True],
    "max_message": [None, True, 1.5],
    **same(("user_timeout", "send_timeout", "pdu_timeout"), [True, "1", []]),
}
BAD_VALUES: dict[str, list[Any]] = {
    **same(("send_buffer", "receive_buffer", "notsent_lowat"), [0, -1, 2**31]),
    "max_segment": [0, 65536],
    "keepalive": [0, 32768],
    "congestion_control": ["", "a" * 16, "re\0no", "réno"],
    "user_timeout": [0, -1.0, float("nan"), float("inf"), 2**31],
    "max_pdu": [1, 6, -7, 2**24 + 1],
    "async_window": [0, -1, 65536],
    "handler_threads": [0, -1, 1025],
    "max_message": [-1, 2**63],
    **same(("send_timeout", "pdu_timeout"), [0, -1, float("nan")]),
}
BAD_TEXTS: dict[str, list[str]] = {
    **same(("nodelay", "quickack", "busy_wait", "cork", "pack_command"), ["perhaps", "2"]),
    **same(
        (
            "send_buffer",
            "receive_buffer",
            "max_segment",
            "keepalive",
            "notsent_lowat",
            "max_pdu",
            "async_window",
            "handler_threads",
        ),
        ["much", "-1", "1.5"],
    ),
    "congestion_control": ["longer than the kernel takes"],
    "max_message": ["-1"],
    **same(("user_timeout", "send_timeout", "pdu_timeout"), ["soon", "0", "nan"]),
}


def cases(table: dict[str, list[Any]]) -> list[Any]:
    """Return (option, value) for each value of a table."""
    return [
        pytest.param(name, value, id=f"{name}={value!r}")
        for name, values in table.items()
        for value in values
    ]


def possible(name: str) -> None:
    """Skip where this platform does not have an option."""
    field = {field.name: field for field in dataclasses.fields(TransportOptions)}[name]
    needs = field.metadata["needs"]
    if needs and not any(map(options._has, needs)):
        pytest.skip(f"no {needs[0]} here")


def test_tables_are_complete() -> None:
    assert set(GOOD) == set(BAD_TYPES) == set(BAD_TEXTS) == set(NAMES)
    assert set(BAD_VALUES) == set(NAMES) - {
        "nodelay",
        "quickack",
        "busy_wait",
        "cork",
        "pack_command",
    }


@pytest.mark.parametrize("name", NAMES)
def test_accepts(name: str) -> None:
    possible(name)
    value, text = GOOD[name]
    made = TransportOptions(**{name: value})
    assert getattr(made, name) == value
    variable = f"FASTPDU_{name.upper()}"
    found = TransportOptions.from_environment({variable: text, "FASTPDU_ENGINE": "pure"})
    assert found == made
    assert type(getattr(found, name)) is type(value)
    assert TransportOptions.from_environment({variable: "  "}) == TransportOptions()


@pytest.mark.parametrize(("name", "value"), cases(BAD_TYPES))
def test_refuses_types(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{name} must be "):
        TransportOptions(**{name: value})


@pytest.mark.parametrize(("name", "value"), cases(BAD_VALUES))
def test_refuses_values(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be "):
        TransportOptions(**{name: value})


@pytest.mark.parametrize(("name", "text"), cases(BAD_TEXTS))
def test_refuses_the_environment(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=rf"^FASTPDU_{name.upper()}={text}: "):
        TransportOptions.from_environment({f"FASTPDU_{name.upper()}": text})


def test_all_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        possible(name)
        monkeypatch.setenv(f"FASTPDU_{name.upper()}", GOOD[name][1])
    assert TransportOptions.from_environment() == TransportOptions(
        **{name: value for name, (value, _) in GOOD.items()}
    )


def test_is_frozen_and_documented() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TransportOptions().nodelay = True  # type: ignore[misc]
    documentation = (
        inspect.getdoc(TransportOptions) or ""
    )  # without the indentation, which CPython 3.13 removes itself
    for name in NAMES:
        assert re.search(rf"\n(\w+, )*{name}(, \w+)* : ", documentation), name
    table = (Path(__file__).parents[2] / "docs" / "tuning.md").read_text("utf-8")
    for name in NAMES:
        assert re.search(rf"\n\|.*`{name}`.*\|", table), name


@pytest.mark.parametrize(
    ("name", "value", "constants"),
    [
        ("nodelay", True, ["TCP_NODELAY"]),
        ("quickack", True, ["TCP_QUICKACK"]),
        ("max_segment", 1400, ["TCP_MAXSEG"]),
        ("congestion_control", "reno", ["TCP_CONGESTION"]),
        ("keepalive", 30, ["TCP_KEEPIDLE", "TCP_KEEPALIVE"]),
        ("user_timeout", 1.0, ["TCP_USER_TIMEOUT"]),
        ("notsent_lowat", 1000, ["TCP_NOTSENT_LOWAT"]),
    ],
)
def test_what_the_platform_lacks(
    monkeypatch: pytest.MonkeyPatch, name: str, value: Any, constants: list[str]
) -> None:
    """Asked for, it is an error; as a default it is left out."""
    for constant in constants:
        monkeypatch.delattr(socket, constant, raising=False)
    with pytest.raises(ValueError, match=rf"^{name}=.* is not possible: .*{constants[0]}"):
        TransportOptions(**{name: value})
    variable = f"FASTPDU_{name.upper()}"
    with pytest.raises(ValueError, match=rf"^{variable}=.*{name}=.* is not possible"):
        TransportOptions.from_environment({variable: str(value)})
    assert getattr(TransportOptions(), name) is None
    if isinstance(value, bool):
        assert getattr(TransportOptions(**{name: False}), name) is False


def test_cork_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CAN_CORK", False)
    with pytest.raises(ValueError, match="cork=True is not possible"):
        TransportOptions(cork=True)
    assert TransportOptions().cork is False


# Whose options hold ---------------------------------------------------------------------------------------------


class Owner:
    """An AE or a server."""

    def __init__(self, value: Any) -> None:
        self.transport = value


def test_whose_options_hold() -> None:
    one, other = TransportOptions(max_message=1), TransportOptions(max_message=2)
    assert options.options_of(object()) == TransportOptions()
    assert options.options_of(Owner(None), Owner(one), Owner(other)) is one
    assert options.options_of(Owner("something else"), Owner(other)) is other
    with fastpdu.installed(one):
        assert options.options_of(Owner(None)) is one
        assert options.options_of(Owner(other)) is other
        assert fastpdu.AE().transport is one
        assert fastpdu.AE(transport=other).transport is other
    assert fastpdu.AE().transport == TransportOptions()


def test_arguments_are_checked() -> None:
    ae = fastpdu.AE()
    ae.add_supported_context("1.2.840.10008.1.1")
    ae.add_requested_context("1.2.840.10008.1.1")
    bad: Any = {"nodelay": True}
    for call in (
        lambda: fastpdu.AE(transport=bad),
        lambda: setattr(ae, "transport", bad),
        lambda: ae.associate("127.0.0.1", 1, transport=bad),
        lambda: ae.start_server(("127.0.0.1", 0), block=False, transport=bad),
        lambda: ae.make_server(("127.0.0.1", 0), transport=bad),
    ):
        with pytest.raises(TypeError, match="transport must be a TransportOptions, not dict"):
            call()
    with pytest.raises(TypeError, match="options must be a TransportOptions"):
        fastpdu.install(bad)
    ae.transport = None
    assert ae.transport == TransportOptions()


# The socket -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["IPv4", "IPv6"])
def sock(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    family = socket.AF_INET if request.param == "IPv4" else socket.AF_INET6
    try:
        made = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        pytest.skip(f"no {request.param} here")
    with made:
        yield made


def read(sock: socket.socket, name: str) -> int:
    """Return a socket option."""
    level = socket.SOL_SOCKET if name.startswith("SO_") else socket.IPPROTO_TCP
    return sock.getsockopt(level, getattr(socket, name))


def test_defaults(sock: socket.socket) -> None:
    before = [read(sock, name) for name in ("SO_SNDBUF", "SO_RCVBUF", "SO_KEEPALIVE")]
    transport.tune(sock, TransportOptions())
    assert read(sock, "TCP_NODELAY") != 0
    assert [read(sock, name) for name in ("SO_SNDBUF", "SO_RCVBUF", "SO_KEEPALIVE")] == before


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("nodelay", True, {"TCP_NODELAY": 1}),
        ("nodelay", False, {"TCP_NODELAY": 0}),
        ("max_segment", 1000, {"TCP_MAXSEG": 1000}),
        (
            "keepalive",
            30,
            {"SO_KEEPALIVE": 1, "TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3},
        ),
        ("keepalive", 1, {"SO_KEEPALIVE": 1, "TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1}),
        ("user_timeout", 12.5, {"TCP_USER_TIMEOUT": 12500}),
        ("user_timeout", 0.0001, {"TCP_USER_TIMEOUT": 1}),
        ("notsent_lowat", 131072, {"TCP_NOTSENT_LOWAT": 131072}),
    ],
)
def test_arrives(sock: socket.socket, name: str, value: Any, expected: dict[str, int]) -> None:
    possible(name)
    transport.tune(sock, TransportOptions(**{name: value}))
    for option, number in expected.items():
        if hasattr(socket, option):
            assert read(sock, option) == number, option


@pytest.mark.parametrize(
    ("name", "option"), [("send_buffer", "SO_SNDBUF"), ("receive_buffer", "SO_RCVBUF")]
)
def test_buffers_arrive(sock: socket.socket, name: str, option: str) -> None:
    transport.tune(sock, TransportOptions(**{name: 50_000}))
    assert read(sock, option) in (50_000, 100_000)  # Linux counts its own overhead


def test_congestion_control_arrives(sock: socket.socket) -> None:
    possible("congestion_control")
    transport.tune(sock, TransportOptions(congestion_control="reno"))
    found = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    assert found.rstrip(b"\0") == b"reno"


def test_a_refusal_names_the_option(sock: socket.socket) -> None:
    possible("congestion_control")
    with pytest.raises(OSError, match="refuses congestion_control='no-such-thing'") as caught:
        transport.tune(sock, TransportOptions(congestion_control="no-such-thing"))
    assert caught.value.errno == errno.ENOENT
    assert isinstance(caught.value.__cause__, OSError)


def test_a_socket_without_tcp() -> None:
    """A default is left out, what was asked for is an error."""
    if not hasattr(socket, "AF_UNIX"):
        pytest.skip("no AF_UNIX here")
    near, far = socket.socketpair(socket.AF_UNIX)
    with near, far:
        transport.tune(near, TransportOptions(send_buffer=10_000))
        with pytest.raises(OSError, match="refuses nodelay=True"):
            transport.tune(near, TransportOptions(nodelay=True))


def test_max_segment_is_left_alone_when_connected(sock: socket.socket) -> None:
    possible("max_segment")
    before = read(sock, "TCP_MAXSEG")
    transport.tune(sock, TransportOptions(max_segment=1000), connected=True)
    assert read(sock, "TCP_MAXSEG") == before


def test_no_busy_waiting_on_one_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = socket.socketpair()
    with near, far:
        for processors in (1, 2):
            monkeypatch.setattr(
                os, "sched_getaffinity", lambda pid, n=processors: set(range(n)), raising=False
            )
            conn = transport.connection_for(near, TransportOptions(busy_wait=True))
            transport.ROADS.end(conn)
            conn.close()
            assert bool(conn.busy_wait) is (processors > 1)


def test_the_engine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    near, far = socket.socketpair()
    with near, far:
        for made, expected, busy in (
            (TransportOptions(), (True, False, False, 0), True),
            (TransportOptions(quickack=False, pack_command=True), (False, False, True, 0), True),
            (
                TransportOptions(cork=engine.CAN_CORK, max_message=9, busy_wait=False),
                (True, engine.CAN_CORK, False, 9),
                False,
            ),
        ):
            conn = transport.connection_for(near, made)
            found = (conn.quickack, conn.cork, conn.pack_command, conn.max_message)
            assert bool(conn.busy_wait) is busy
            transport.ROADS.end(conn)
            conn.close()
            assert tuple(map(bool, found[:3])) + found[3:] == expected
