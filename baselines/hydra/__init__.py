"""Hydra (arXiv 2402.05109): Medusa's heads that also read the tokens drafted before."""
