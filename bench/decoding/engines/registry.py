"""Names of the engines; no torch."""

ENGINES = ("eager", "graph", "compile")
