"""How much fits into a device's free memory, and one line where something does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch
from accelerate.utils.memory import should_reduce_batch_size

from bench.errors import UsageError

SHARE = 0.7  # of the free memory, for a batch that is chosen; the rest is for what is not counted
MOST = {"cpu": 256, "cuda": 4096}  # sequences at a time: an interruption loses a batch
CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on a device; of the host, within a container's limit."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    return min([psutil.virtual_memory().available, *_container_rest()])


def _container_rest() -> list[int]:
    """Bytes left to this control group, without its page cache; nothing where it has no limit."""
    with suppress(OSError, ValueError, KeyError):
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        lines = (CGROUP / "memory.stat").read_text().splitlines()
        cached = int(dict(line.split() for line in lines)["inactive_file"])
        return [max(limit - used + cached, 0)]
    return []


def batch_size(asked: int | None, each: int, device: torch.device) -> int:
    """Sequences at a time: `asked`, or what fits, a power of two.

    Args:
        asked: `--batch`; None chooses.
        each: bytes of one sequence.
        device: where they are written.

    UsageError where `asked` sequences, or not even one, fit into the free memory.
    """
    free = free_bytes(device)
    fits = int(SHARE * free) // each
    if fits < 1 or (asked is not None and asked * each > free):
        advice = (
            f"give --batch {_power(fits)} or leave it out" if fits else "give a smaller --length"
        )
        raise UsageError(
            f"--batch {asked or 1} needs {_gigabytes((asked or 1) * each)} on {device.type}, and "
            f"{_gigabytes(free)} are free; {advice}"
        )
    return min(_power(fits), MOST[device.type]) if asked is None else asked


def _power(number: int) -> int:
    """The largest power of two up to `number`."""
    return 1 << (number.bit_length() - 1)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"


def ran_out(error: Exception) -> bool:
    """Whether a device or the host had no memory left."""
    return isinstance(error, MemoryError) or should_reduce_batch_size(error)


@contextmanager
def refused(advice: str) -> Iterator[None]:
    """Running out of memory as a UsageError of one line; `advice` is how to need less."""
    try:
        yield
    except Exception as error:
        if not ran_out(error):
            raise
        raise UsageError(f"out of memory; {advice}") from error
