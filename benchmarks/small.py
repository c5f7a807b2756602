#!/usr/bin/env python3
"""C-ECHO round trips and C-STOREs of 2 KB objects, beside stock pynetdicom.

The same as `fastpdu bench small`; the code is in `fastpdu.bench.small`, the method in README.md.
"""

import sys

from fastpdu.bench import command

if __name__ == "__main__":
    sys.exit(command.script("small"))
