"""The plot of a training run: held-out accepted length against steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def draw(log: list[dict[str, Any]], path: Path) -> None:
    """Plot one line for each draft and tree size from the entries of `log.jsonl`, as SVG."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for label in log[-1]["methods"]:
        for nodes in ("15", "63"):
            lengths = [entry["methods"][label]["accepted"][nodes] for entry in log]
            axes.plot([entry["step"] for entry in log], lengths, label=f"{label}, {nodes} nodes")
    axes.set_xlabel("step")
    axes.set_ylabel("held-out accepted length")
    axes.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})
