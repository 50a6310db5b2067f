"""Alias of `python -m bench.training.distill`."""

import sys

from bench.training.distill import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m chimera.distill"))
