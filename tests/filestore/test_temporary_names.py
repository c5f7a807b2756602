"""The temporary files of a store in processes that fork."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# One child ends as if it was killed, and leaves its files; the other one in the usual way, which removes its own.
FORK = """
import os, sys
from fastpdu import FileStore
from fastpdu.filestore import Incoming

directory = sys.argv[1]
store = FileStore(directory)

def make(number):
    made = []
    for _ in range(number):
        incoming = Incoming(store, store._temporary_name(os.path.join(directory, '')), {})
        incoming.open()
        assert incoming.error is None, incoming.error
        made.append(incoming)
    return made

def child(end):
    pid = os.fork()
    if pid == 0:
        made = make(3)
        end(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

ours = make(2)
names = {os.path.basename(one.name) for one in ours}
child(os._exit)
left = set(os.listdir(directory))
assert names < left and len(left) == 5, left
child(sys.exit)
assert set(os.listdir(directory)) == left
del ours
assert set(os.listdir(directory)) == left - names
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_processes_that_have_forked(tmp_path: Path) -> None:
    """Each has names of its own, and removes its own files only."""
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
