#!/usr/bin/env python3
"""1000 CT from files to files over one association in one process, beside cp -r, stock pynetdicom and DCMTK.

The same as `fastpdu bench disk`; the code is in `fastpdu.bench.disk`, the method in README.md.
"""

import sys

from fastpdu.bench import command

if __name__ == "__main__":
    sys.exit(command.script("disk"))
