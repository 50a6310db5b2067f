"""From record folders to checked tables."""
