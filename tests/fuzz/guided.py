"""Coverage-guided fuzzing of one target with atheris (libFuzzer): ``python guided.py TARGET [libFuzzer options]``.

What guides it is the coverage of the pure engine, which each target runs beside the compiled one. Half of the
mutations are libFuzzer's, half are those of fuzz_mutations.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import atheris

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "unit")]

with atheris.instrument_imports(include=["fastpdu._pure"]):
    import fastpdu._pure  # noqa: F401

import fuzz_targets  # noqa: E402
from fuzz_mutations import LONGEST  # noqa: E402


def main() -> None:
    """Fuzz until libFuzzer has enough of it, or a target fails."""
    target = fuzz_targets.TARGETS[sys.argv[1]]
    fuzz_targets.PURE_FD.module, fuzz_targets.COMPILED_FD.module  # noqa: B018 - both must be there
    seeds = iter(target.corpus)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        chance = Random(seed)
        fresh = next(seeds, None)
        if fresh is not None:
            return fresh[:max_size]
        if chance.random() < 0.5:
            return atheris.Mutate(data, max_size)
        if chance.random() < 0.1:
            data = chance.choice(target.corpus)
        return target.damage(chance, data)[:max_size]

    atheris.Setup(
        [sys.argv[0], f"-max_len={LONGEST}", *sys.argv[2:]], target.run, custom_mutator=mutate
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
