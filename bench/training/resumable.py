"""The state of an interrupted training, in the folder of its weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from bench import cli, files
from bench.errors import UsageError

STATE = "state.json"  # names the newest complete state


class Completed:
    """How far training is, in the form that accelerate saves."""

    def __init__(self) -> None:
        self.step = 0  # completed
        self.seconds = 0.0  # in training, over all its sessions

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class ResumableState:
    """Saves and restores what accelerate knows; a kill at any moment leaves a complete state."""

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        """`settings` determine the training. UsageError where `out` has a training with others."""
        self._out = out
        self._settings = settings
        self.folder: Path | None = None  # of the newest complete state
        try:
            known = json.loads((out / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        self.folder = out / known["folder"]
        if known["settings"] != settings:
            name = next(k for k in settings if known["settings"].get(k) != settings[k])
            raise UsageError(
                f"{out} holds a training with {cli.flag(name)} {known['settings'].get(name)}, not "
                f"{settings[name]}; choose another --out, or delete {out / STATE}"
            )

    def load(self, accelerator: Accelerator) -> bool:
        """Restore the newest state; False where there is none."""
        if self.folder is None:
            return False
        accelerator.load_state(str(self.folder))
        return True

    def save(self, accelerator: Accelerator, step: int) -> None:
        """Save a state and drop the one before it."""
        before, self.folder = self.folder, self._out / f"state-{step}"
        accelerator.save_state(str(self.folder))
        accelerator.wait_for_everyone()
        if not accelerator.is_main_process:
            return
        content = {"folder": self.folder.name, "settings": self._settings}
        files.write_text(self._out / STATE, json.dumps(content, indent=1) + "\n")
        if before not in (None, self.folder):
            shutil.rmtree(before)
