"""Trained weights that ship: `<method>-<target>.safetensors`, each with a JSON card beside it."""
