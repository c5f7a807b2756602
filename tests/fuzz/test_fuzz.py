"""Both engines under damaged input: the same answers, and nothing but documented ones.

Without any variable each target gets a few hundred inputs, the same ones every time.

``FASTPDU_FUZZ_SECONDS=N``
    N seconds in all, shared by the tests, with new inputs each time.
``FASTPDU_FUZZ_SEED=SEED``
    The seed that a failure has printed: ``SEED`` for all of that run, ``SEED/CASE`` for the one input.

The engines' answers are judged, never how long they take: the seconds only end the loop.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from fuzz_targets import TARGETS, need_both

SECONDS = float(os.environ.get("FASTPDU_FUZZ_SECONDS") or 0)
SHARE = SECONDS / (2 * len(TARGETS))  # of each test
SEED = os.environ.get("FASTPDU_FUZZ_SEED") or (os.urandom(4).hex() if SECONDS else "1")
CASES = 150  # inputs of a target where no time is given
GUIDED = 300  # runs of libFuzzer, likewise

names = pytest.mark.parametrize("name", list(TARGETS))


def cases() -> Iterator[str]:
    """Yield the seed of each input."""
    if "/" in SEED:
        yield SEED
        return
    end = time.monotonic() + SHARE
    for number in itertools.count():
        if time.monotonic() >= end if SECONDS else number >= CASES:
            return
        yield f"{SEED}/{number}"


@names
def test_mutations(name: str) -> None:
    """Inputs of the corpus, damaged."""
    need_both()
    target = TARGETS[name]
    if "/" not in SEED:
        for data in target.corpus:
            target.run(data)
    count = 0
    for seed in cases():
        chance = Random(f"{name} {seed}")
        data = chance.choice(target.corpus)
        for _ in range(chance.choice((1, 1, 2, 3))):
            data = target.damage(chance, data)
        try:
            target.run(data)
        except Exception as error:
            raise AssertionError(
                f"{name}: FASTPDU_FUZZ_SEED={seed}, input {data[:2000].hex()}"
            ) from error
        count += 1
    print(f"{name}: FASTPDU_FUZZ_SEED={SEED}, {count} inputs")


@names
def test_guided(name: str, tmp_path: Path) -> None:
    """The same guided by the coverage of the pure engine, where atheris is installed (dependency group `fuzz`).

    Never under the sanitizers: their runtime takes libFuzzer's place, and then nothing guides it.
    """
    need_both()
    pytest.importorskip("atheris")
    if "/" in SEED:
        pytest.skip("one input of the other test is wanted")
    # libFuzzer takes a number
    seed = Random(f"{name} {SEED}").randrange(1, 2**31)
    command = [sys.executable, str(Path(__file__).with_name("guided.py")), name, f"-seed={seed}"]
    command += [f"-max_total_time={max(round(SHARE), 1)}"] if SECONDS else [f"-runs={GUIDED}"]
    # (a timeout of 0 is not "none" to atheris: it would end the first input during which its timer ticks)
    command += ["-timeout=100", "-rss_limit_mb=0", f"-artifact_prefix={tmp_path}/"]
    environment = dict(os.environ)
    if environment.pop("FASTPDU_SANITIZED", None):
        for variable in ("LD_PRELOAD", "PYTHONPATH", "PYTHONMALLOC"):
            environment.pop(variable, None)
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, errors="replace"
    )
    found = [path.read_bytes().hex()[:4000] for path in tmp_path.iterdir()]
    _, exception, what = done.stderr.partition("Uncaught Python exception")
    why = what[:4000] if exception else done.stderr[-6000:]
    assert done.returncode == 0, f"-seed={seed}, input {found}\n{why}"
    print(f"{name}: -seed={seed}, {done.stderr.splitlines()[-1:]}")
