"""Engines: how a target's forwards, drafts and acceptance are executed."""
