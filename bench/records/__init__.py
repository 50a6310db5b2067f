"""Schemas and readers of runs, cost studies and tuned files; no torch."""
