"""Checking what a run recorded: python -m bench.audit."""
