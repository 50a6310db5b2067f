"""Alias of `python -m bench.training.trees`."""

import sys

from bench.training.trees import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m chimera.trees"))
