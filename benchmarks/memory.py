#!/usr/bin/env python3
"""Peak memory of a receiver while 1000 CT stream through it.

The same as `fastpdu bench memory`; the code is in `fastpdu.bench.memory`, the method in README.md.
"""

import sys

from fastpdu.bench import command

if __name__ == "__main__":
    sys.exit(command.script("memory"))
