"""With this directory on PYTHONPATH and FASTPDU_INSTALL=1, every Python process starts on the fast transport.

scripts/run-upstream-tests uses it for the tests of pynetdicom's applications, which run as subprocesses.
"""

import os
import sys


def _install() -> None:
    import fastpdu

    fastpdu.install()
    directory = os.environ.get("FASTPDU_ROAD_DIR")
    if directory:
        import atexit

        atexit.register(_leave_counts, directory)


def _leave_counts(directory: str) -> None:
    import json

    from fastpdu.transport import road_counters

    counters = road_counters()
    if not any(counters.values()):
        return
    name = os.path.join(directory, f"{os.getpid()}")
    with open(name, "w", encoding="utf-8") as file:
        json.dump(counters, file)
    os.replace(name, f"{name}.json")


if os.environ.get("FASTPDU_INSTALL") == "1":
    try:
        _install()
    except BaseException:
        # Python would only mention an exception here and go on: with the stock transport
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(70)
