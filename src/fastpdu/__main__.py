"""`python -m fastpdu` is the program `fastpdu`."""

from __future__ import annotations

import sys

from fastpdu.cli import main

# Child processes of a benchmark import this module again under another name.
if __name__ == "__main__":
    sys.exit(main())
