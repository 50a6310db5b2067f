"""All methods on one model, from training data to a page, unattended.

python benchmarks/study.py --model smollm2-135m --out study [--drafts chimera_plus eagle3 ...]
    [--seconds 100] [--sequences 10000 50000] [-- --datasets mt_bench --data-dir DIR]

1. data: the model answers prompts from templates, then prompts about paragraphs of those answers.
2. drafts: each is trained alone for as many steps as it makes in --seconds, at a rate measured
   first, so that all have the same budget of the same device.
3. trees: the static tree of each draft.
4. run: all of them and the methods without a draft, with the flags behind `--`, and the page.

Each step is a command of the suite, printed before it starts. The same command goes on where it
was interrupted. OUT/seconds.json has what each step took.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Drafts, and the rows of the run that use them.
ROWS = {
    "chimera": ("chimera(nodes=15,depth=4)",),
    "chimera_plus": ("chimera_plus(nodes=15,depth=4)", "chimera_plus(nodes=auto,depth=4)"),
    "chimera_block": ("chimera_block(nodes=15,depth=4)",),
    "medusa": ("medusa(nodes=15)",),
    "hydra": ("hydra(nodes=15)",),
    "eagle3": ("eagle3(nodes=15,depth=4,beam=6)", "eagle3(nodes=auto,depth=5,beam=8)"),
    "dflash_markov": ("dflash(nodes=15,depth=4)", "dflash(nodes=auto,depth=5)"),
}
FREE = ("prompt_lookup", "lookahead", "token_recycling(nodes=31)", "suffix(nodes=15)")
BLOCKS = ("dflash_markov",)  # trained on the weighting made for blocks
PROBE = 60  # steps, of which the first half warms up


class Study:
    """The commands of a study, each run once."""

    def __init__(self, out: Path) -> None:
        self.out = out
        out.mkdir(parents=True, exist_ok=True)
        self._times = out / "seconds.json"
        self._seconds: dict[str, float] = {}
        if self._times.is_file():
            self._seconds = json.loads(self._times.read_text())

    def step(self, name: str, module: str, *words: object) -> None:
        """`python -m MODULE WORDS`, unless it has ended before; SystemExit where it fails."""
        if name in self._seconds:
            return
        command = ["-m", module, *map(str, words)]
        print("$ python", shlex.join(command), flush=True)
        started = time.monotonic()
        code = subprocess.call([sys.executable, *command])
        if code:
            raise SystemExit(f"{name}: exit code {code}")
        self._seconds[name] = round(time.monotonic() - started, 1)
        self._times.write_text(json.dumps(self._seconds, indent=1))

    def data(self, model: str, sequences: Sequence[int]) -> list[Path]:
        """Folders of conversations."""
        folders: list[Path] = []
        for part, count in enumerate(sequences):
            prompts, folder = self.out / f"prompts-{part}.jsonl", self.out / f"data-{part}"
            about = ("--models", model, "--passages", folders[0]) if folders else ()
            drawn = ("--out", prompts, "--count", count, "--seed", part + 1, *about)
            self.step(f"prompts {part}", "bench.training.prompts", *drawn)
            asked = ("--prompts", prompts, "--sequences", count, "--answer-tokens", 256)
            distil = ("--models", model, "--out", folder, *asked)
            self.step(f"data {part}", "bench.training.distill", *distil)
            folders.append(folder)
        return folders

    def draft(self, model: str, draft: str, data: Sequence[Path], seconds: float) -> Path:
        """The weights of a draft that was trained for `seconds`."""
        words: list[object] = ["--models", model, "--methods", draft, "--data", *data]
        words += ["--tokens", 28_672, "--anchors", 64]
        words += ["--depth-weights", "dpace"] if draft in BLOCKS else []
        probe, folder = self.out / "probes" / draft, self.out / "trained" / draft
        steps = ("--steps", PROBE, "--eval-every", PROBE // 2, "--out", probe)
        self.step(f"probe {draft}", "bench.training.train", *words, *steps)
        log = [json.loads(line) for line in (probe / "log.jsonl").read_text().splitlines()]
        middle, last = log[-2:]
        rate = (last["step"] - middle["step"]) / (last["seconds"] - middle["seconds"])
        count = max(1, round(seconds * rate))
        steps = ("--steps", count, "--eval-every", -(-count // 4), "--out", folder)
        self.step(f"train {draft}", "bench.training.train", *words, *steps)
        weights = folder / f"{draft}-0.safetensors"
        trees = ("--models", model, "--weights", weights)
        self.step(f"trees {draft}", "bench.training.trees", *trees)
        return weights


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, default=Path("study"))
    parser.add_argument("--drafts", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--free", nargs="*", default=FREE, help="methods without a draft")
    parser.add_argument("--seconds", type=float, default=100.0, help="of training, for each draft")
    parser.add_argument("--sequences", nargs="+", type=int, default=[10_000, 50_000])
    parser.add_argument("run", nargs="*", help="flags of bench.run, behind `--`")
    flags: Any = parser.parse_args()

    study = Study(flags.out)
    data = study.data(flags.model, flags.sequences)
    weights = {d: study.draft(flags.model, d, data, flags.seconds) for d in flags.drafts}
    rows = [row for draft in flags.drafts for row in ROWS[draft]]
    given = [f"{ROWS[d][0].partition('(')[0]}={path}" for d, path in weights.items()]
    words = ["--models", flags.model, "--out", flags.out / "run", "--methods", *rows, *flags.free]
    words += ["--checkpoint", *given] if given else []
    study.step("run", "bench.run", *words, *flags.run)


if __name__ == "__main__":
    main()
