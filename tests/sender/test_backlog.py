"""The files that wait for an association."""

from __future__ import annotations

import threading

from helpers import data, kit

from fastpdu.sender.backlog import Backlog
from fastpdu.sender.files import FileItem


def test_a_file_goes_to_who_waits_for_it_not_to_who_pauses() -> None:
    backlog = Backlog(lambda: None)
    taken: list[FileItem | None] = []
    pausing = threading.Thread(target=backlog.pause, args=(kit.DEADLINE,))
    waiting = threading.Thread(target=lambda: taken.append(backlog.wait(())))
    for count, thread in enumerate((pausing, waiting), 1):
        thread.start()
        kit.until(lambda count=count: len(backlog._changed._waiters) == count)  # type: ignore[attr-defined, misc]
    item = FileItem("x", 1, 1, data.CT, "1.2.3", data.EXPLICIT)
    backlog.put(item)
    waiting.join(kit.DEADLINE / 4)
    backlog.stop()
    pausing.join()
    waiting.join()
    assert taken == [item]
