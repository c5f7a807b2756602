#!/usr/bin/env python3
"""CPU time and threads of 100 idle associations, beside stock pynetdicom.

The same as `fastpdu bench idle`; the code is in `fastpdu.bench.idle`, the method in README.md.
"""

import sys

from fastpdu.bench import command

if __name__ == "__main__":
    sys.exit(command.script("idle"))
