"""The base that all decoders share: contract, trees, acceptance, target, engines; names no method."""
