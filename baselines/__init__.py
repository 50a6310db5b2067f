"""Decoders to compare with, one module or folder for each method."""
