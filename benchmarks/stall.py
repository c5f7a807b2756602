#!/usr/bin/env python3
"""Nagle's algorithm and delayed ACKs between DICOM peers: who waits for whom, and what it costs.

The same as `fastpdu bench stall`; the code is in `fastpdu.bench.stall`, the method in README.md.
"""

import sys

from fastpdu.bench import command

if __name__ == "__main__":
    sys.exit(command.script("stall"))
