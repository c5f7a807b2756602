#!/usr/bin/env python3
"""C-FIND with 5000 responses, beside stock pynetdicom.

The same as `fastpdu bench find`; the code is in `fastpdu.bench.find`, the method in README.md.
"""

import sys

from fastpdu.bench import command

if __name__ == "__main__":
    sys.exit(command.script("find"))
