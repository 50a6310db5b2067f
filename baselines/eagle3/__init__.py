"""EAGLE-3 (arXiv 2503.01840): a decoder layer that drafts from its own outputs."""
