"""Shared by all decoders: contract, trees, acceptance, target model, engines; no method by name."""
