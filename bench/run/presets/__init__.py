"""Presets of `bench.run`, one YAML file each."""
