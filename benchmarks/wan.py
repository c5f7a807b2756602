#!/usr/bin/env python3
"""1000 CT over a link of 0 to 100 ms, with and without the asynchronous operations window, beside raw sockets.

The same as `fastpdu bench wan`; the code is in `fastpdu.bench.wan`, the method in README.md.
"""

import sys

from fastpdu.bench import command

if __name__ == "__main__":
    sys.exit(command.script("wan"))
