#!/usr/bin/env python3
"""1000 CT over one association in one process, beside the raw-socket floor, stock pynetdicom and DCMTK.

The same as `fastpdu bench`; the code is in `fastpdu.bench.ct1000`, the method in README.md.
"""

import sys

from fastpdu.bench import command

if __name__ == "__main__":
    sys.exit(command.script("ct1000"))
