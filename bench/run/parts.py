"""The parts of a run that several processes of one launch record.

Questions are dealt to the processes: all turns, methods and repeats of a question run in one
process, on one card, so that pairs stay pairs. The main process records in the run folder itself,
every other in a run folder of its own, `parts/<rank>`, until the main process absorbs it. What a
kill leaves there is absorbed when the run goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from bench.distributed import World
from bench.questions import history
from bench.questions.parsing import Questions
from bench.records import runs
from bench.records.journal import Folder
from bench.records.runs import PARTS, RunFolder
from bench.run import frozen

SHARED = (history.FILE, frozen.FILE)  # what a part knows of the run before it begins


def deal(sets: Sequence[Questions], world: World, together: bool = False) -> list[Questions]:
    """The questions of this process: of each set every `world.size`-th, from its rank on,
    whatever has been answered before. Sets without a question are left out. All questions where
    the processes answer each `together`: the parts then hold what the main process has too."""
    if world.alone or together:
        return list(sets)
    dealt, first = [], 0  # counts on from set to set, so that small sets reach every process
    for questions in sets:
        size = len(questions.dataset)
        mine = [i for i in range(size) if (first + i) % world.size == world.rank]
        first += size
        if mine:
            dealt.append(replace(questions, dataset=questions.dataset.select(mine)))
    return dealt


class Part(RunFolder):
    """The run folder of one process; what the run's folder holds counts as done in it."""

    def __init__(self, run: Path, rank: int) -> None:
        super().__init__(run / PARTS / str(rank))
        self._run = run

    def __enter__(self) -> Self:
        super().__enter__()
        self.know(runs.read(self._run))
        for name in SHARED:
            self.write_once(name, _whole(self._run / name) + _whole(self.path / name))
        return self


def absorb(folder: Folder, kind: Callable[[Path], Folder] = RunFolder) -> None:
    """Moves what the parts hold, each a folder of this `kind`, into the run's folder, in order of
    their ranks, and removes them.

    A kill at any moment loses and doubles nothing. UsageError where a part is still in use.
    """
    parts = folder.path / PARTS
    if not parts.is_dir():
        return
    for path in sorted(parts.iterdir(), key=lambda path: (len(path.name), path.name)):
        with kind(path) as part:
            for name in SHARED:
                known, more = _whole(folder.path / name), _whole(path / name)
                seen = set(known.splitlines())
                new = [line for line in more.splitlines() if line not in seen]
                if new:
                    folder.write_once(name, known + "".join(f"{line}\n" for line in new))
            folder.absorb(part.records())
        shutil.rmtree(path)
    parts.rmdir()


def _whole(path: Path) -> str:
    """A file's complete lines; nothing where there is no file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    return text[: text.rfind("\n") + 1]
