"""DFlash (arXiv 2602.06036): a block of tokens drafted in one pass over the target's states."""
