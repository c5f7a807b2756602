#!/usr/bin/env python3
"""1000 CT over one association with TLS, beside what the ssl module can do at its best.

The same as `fastpdu bench tls`; the code is in `fastpdu.bench.tls`, the method in README.md.
"""

import sys

from fastpdu.bench import command

if __name__ == "__main__":
    sys.exit(command.script("tls"))
