#!/usr/bin/env python3
"""1 to 200 associations at once to one SCP process, against a single association.

The same as `fastpdu bench associations`; the code is in `fastpdu.bench.associations`, the method in README.md.
"""

import sys

from fastpdu.bench import command

if __name__ == "__main__":
    sys.exit(command.script("associations"))
