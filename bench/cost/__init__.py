"""Measuring forwards and steps: python -m bench.cost."""
