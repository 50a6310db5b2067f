"""Alias of `python -m bench.training.train`."""

import sys

from bench.training.train import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m chimera.train"))
