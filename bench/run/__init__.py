"""Running a grid of methods on question sets: python -m bench.run."""
