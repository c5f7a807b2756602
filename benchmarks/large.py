#!/usr/bin/env python3
"""One object of 4 GB from a file into a file, both ways: peak memory of both ends.

The same as `fastpdu bench large`; the code is in `fastpdu.bench.large`, the method in README.md.
"""

import sys

from fastpdu.bench import command

if __name__ == "__main__":
    sys.exit(command.script("large"))
