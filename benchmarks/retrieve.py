#!/usr/bin/env python3
"""1000 CT images through C-MOVE and C-GET in one process, beside the raw-socket floor.

The same as `fastpdu bench retrieve`; the code is in `fastpdu.bench.retrieve`, the method in README.md.
"""

import sys

from fastpdu.bench import command

if __name__ == "__main__":
    sys.exit(command.script("retrieve"))
