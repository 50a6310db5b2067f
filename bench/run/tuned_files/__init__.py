"""Parameters that bench.tune chose, one file a device, engine, model and precision."""
