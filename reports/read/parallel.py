"""A second process for large pages: two independent halves of the work."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

Mine = TypeVar("Mine")
Other = TypeVar("Other")


def side_by_side(
    mine: Callable[[], Mine], other: Callable[[], Other], worth_it: bool = True
) -> tuple[Mine, Other]:
    """Both results; `other` runs in a forked process where this one can be forked.

    On a single core, where other threads or torch could hold a lock at the fork, or where it is
    not `worth_it`, one runs after the other. The result of `other` must be picklable.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    if not worth_it or cores < 2 or threading.active_count() > 1 or "torch" in sys.modules:
        return mine(), other()
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=_send, args=(sender, other), daemon=True)
    process.start()
    sender.close()
    try:
        made = mine()
        good, given = receiver.recv()
    except EOFError:  # it was killed, for example for its memory
        good, given = True, other()
    finally:
        receiver.close()
        process.join()
    if not good:
        raise given
    return made, given


def _send(sender: Connection[Any, Any], make: Callable[[], object]) -> None:
    try:
        answer: tuple[bool, object] = (True, make())
    except Exception as error:
        answer = (False, error)
    sender.send(answer)
