"""A network link with a round trip, a bandwidth and losses, between two network namespaces.

Each end is a TUN device, and this file, run as a program, carries the packets between them. So the TCP of both ends is
the kernel's, and what it says in TCP_INFO about the link is measured, not told. Nothing of it has a name that others
could see, and nothing is left when the program ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import shutil
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

NEAR, FAR = "10.0.0.1", "10.0.0.2"
_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_TUN = "/dev/net/tun"
#: Of an Ethernet link.
_MTU = 1500
#: Packets that a device holds until they are read: a busy machine shall not lose any.
_QUEUE = 20_000


class Unavailable(Exception):
    """There can be no link on this machine; the text says why."""


@dataclass
class Link:
    """A running link.

    Attributes
    ----------
    near, far : list of str
        What stands before a command line that is to run at one of the ends, whose address is `NEAR` or `FAR`.
    """

    near: list[str]
    far: list[str]


@contextlib.contextmanager
def running(
    *, round_trip: float = 0.0, rate: float = 0.0, queue: float = 0.0, loses: int = 0
) -> Iterator[Link]:
    """Run a link for the duration of a ``with`` block.

    Parameters
    ----------
    round_trip : float
        Seconds, half of them in each direction.
    rate : float
        Bytes per second in each direction; 0: as many as there are.
    queue : float
        Seconds for which packets may wait for their turn at this rate; what comes then is lost. 0: any.
    loses : int
        Of the full packets from the near end, each one of so many is lost; 0: none.

    Raises
    ------
    Unavailable
        If this machine does not allow it.
    """
    missing = [name for name in ("ip", "nsenter") if shutil.which(name) is None]
    if sys.platform != "linux" or missing:
        raise Unavailable(f"needs {missing[0]}" if missing else "needs Linux")
    if not os.path.exists(_TUN):
        raise Unavailable(f"needs {_TUN}")
    settings = {"delay": round_trip / 2, "rate": rate, "queue": queue, "loses": loses}
    process = subprocess.Popen(
        [sys.executable, __file__, json.dumps(settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    # It ends with its input, also if this process is killed
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin:
            told = json.loads(process.stdout.readline() or '{"failure": "the link did not start"}')
            if "failure" in told:
                raise Unavailable(told["failure"])
            near, far = (
                ["nsenter", f"--net=/proc/{process.pid}/fd/{number}"] for number in told["ends"]
            )
            yield Link(near, far)


# The program --------------------------------------------------------------------------------------------------------


@dataclass
class _Direction:
    """What is on its way from one device to the other."""

    source: int
    target: int
    delay: float
    rate: float
    queue: float
    loses: int
    free: float = 0.0
    full: int = 0
    packets: deque[tuple[float, bytes]] = field(default_factory=deque)

    def take(self) -> None:
        """Take all packets that the device has."""
        while True:
            try:
                packet = os.read(self.source, 65536)
            except BlockingIOError:
                return
            now = time.monotonic()
            begun = max(now, self.free)
            if self.queue and begun - now > self.queue:
                continue
            if len(packet) == _MTU:
                self.full += 1
                if self.loses and self.full % self.loses == 0:
                    continue
            self.free = begun + (len(packet) / self.rate if self.rate else 0.0)
            self.packets.append((self.free + self.delay, packet))

    def give(self) -> None:
        """Deliver what is due."""
        now = time.monotonic()
        while self.packets and self.packets[0][0] <= now:
            # (a device that is not up any more: its end has gone)
            with contextlib.suppress(OSError):
                os.write(self.target, self.packets.popleft()[1])


def _namespace() -> int:
    """Move this process to a network namespace of its own; return what holds it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "unshare")
    return os.open("/proc/self/ns/net", os.O_RDONLY)


def _device(own: str, other: str) -> int:
    """Make a device in this process's namespace, with a route to the other end."""
    device = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"fastpdu", _IFF_TUN | _IFF_NO_PI))
    for command in (
        f"link set fastpdu mtu {_MTU} txqueuelen {_QUEUE} up",
        f"address add {own} peer {other} dev fastpdu",
        "link set lo up",
    ):
        subprocess.run(["ip", *command.split()], check=True, stdin=subprocess.DEVNULL)
    return device


def _main(settings: str) -> None:
    try:
        near_end, near = _namespace(), _device(NEAR, FAR)
        far_end, far = _namespace(), _device(FAR, NEAR)
    except OSError as error:
        why = "needs root" if error.errno in (errno.EPERM, errno.EACCES) else str(error)
        print(json.dumps({"failure": f"no network namespace with a TUN device: {why}"}), flush=True)
        return
    print(json.dumps({"ends": [near_end, far_end]}), flush=True)
    there = _Direction(near, far, **json.loads(settings))
    back = _Direction(far, near, **{**json.loads(settings), "loses": 0})
    by_source = {near: there, far: back}
    while True:
        due = [way.packets[0][0] for way in (there, back) if way.packets]
        wait = max(0.0, min(due) - time.monotonic()) if due else None
        ready, _, _ = select.select([near, far, 0], [], [], wait)
        if 0 in ready:
            return
        for source in ready:
            by_source[source].take()
        for way in (there, back):
            way.give()


if __name__ == "__main__":
    _main(sys.argv[1])
