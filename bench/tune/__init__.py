"""Choosing parameters by measurement: python -m bench.tune."""
