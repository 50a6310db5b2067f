"""The processes of one launch: which of them this is, and what they tell each other.

`accelerate launch` and `torchrun` start a command several times and say so in environment
variables. A command started by itself is a world of one process and makes no process group.
Messages go over gloo between the CPUs: they need no card, and none is sent while turns are timed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

from bench.errors import UsageError
from bench.progress import note

T = TypeVar("T")

LONGEST_START = timedelta(minutes=5)  # until every process is there; one may be killed before
LONGEST_WAIT = timedelta(days=30)  # for the slowest process; one that has ended is noticed at once


@dataclass(frozen=True)
class World:
    """The processes of a launch, as this one sees them.

    Attributes:
        rank: of this process, from 0; that of the main process is 0.
        size: how many processes there are.
        local_rank: of this process among those of its machine; it takes the card of this index.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """Whether this is the process that prints, merges and reports."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

    def device(self, device: str) -> str:
        """The device of this process: of `cuda` in a launch, the card of its local rank.

        UsageError where the device names one card for all, or there is none for this process.
        """
        if self.alone or not device.startswith("cuda"):
            return device
        import torch

        if device != "cuda":
            raise UsageError(
                f"--device {device} is one card for {self.size} processes; pass --device cuda"
            )
        cards = torch.cuda.device_count()
        if self.local_rank >= cards:
            raise UsageError(
                f"process {self.local_rank} of this machine has no card: there are {cards}; launch "
                "at most one process for each"
            )
        torch.cuda.set_device(self.local_rank)  # the one that `cuda` means from now on
        return f"cuda:{self.local_rank}"

    def own_device(self, device: str) -> str:
        """As `device`. UsageError too where the processes have devices of different kinds."""
        from bench import environment

        own = self.device(device)
        names = sorted(set(self.gather(environment.device_name(own))))
        if len(names) > 1:
            raise UsageError(
                f"the processes have different devices ({', '.join(names)}); launch on one kind, "
                "so that records of one run compare"
            )
        return own

    def share(self, items: Sequence[T], one: str, several: str) -> list[T]:
        """Every `size`-th of the items, from its rank on, for this process. UsageError, which calls
        them `one` or `several`, where there are fewer than processes."""
        if len(items) < self.size:
            found = f"{len(items)} {one if len(items) == 1 else several}"
            raise UsageError(
                f"--split has {found} to deal to {self.size} processes; launch at most "
                f"{max(len(items), 1)}"
            )
        return list(items[self.rank :: self.size])

    def cards(self, parallel: str, device: str) -> int:
        """Over how many devices a model lies. UsageError where there are not enough for it."""
        if parallel == "none":
            return 1
        if parallel == "tp":
            if self.alone:
                raise UsageError(
                    "--parallel tp splits a model over processes; start them with accelerate "
                    "launch --num_processes 2 -m bench.run"
                )
            return self.size
        import torch

        cards = torch.cuda.device_count() if device == "cuda" else 0
        if not self.alone or cards < 2:
            raise UsageError(
                "--parallel layers takes one process, --device cuda and two cards or more; "
                f"here are {self.size} and {cards}"
            )
        return cards

    def wait(self) -> None:
        """Until every process is here. UsageError where one has ended."""
        self.gather(None)

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank, in every process; UsageError as `wait`."""
        if self.alone:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        with _ended():
            dist.all_gather_object(found, value)
        return found

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` returns in the main process, in every process; the others do not call it.

        Where it raises, the others leave with SystemExit: the main process says why.
        """
        if self.alone:
            return make()
        if not self.main:
            passed, value = self._broadcast((False, None))
            if not passed:
                raise SystemExit(2)
            return cast(T, value)
        try:
            made = make()
        except BaseException:
            self._broadcast((False, None))
            raise
        self._broadcast((True, made))
        return made

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The block runs in the main process, then in the others, which find what it fetched.

        Where it raises in the main process, the others leave with SystemExit.
        """
        if not self.main:
            self.from_main(bool)
        passed = False
        try:
            yield
            passed = True
        finally:
            if self.main and not self.alone:
                self._broadcast((passed, None))

    def _broadcast(self, message: tuple[bool, object]) -> tuple[bool, object]:
        """The main process's message, in every process."""
        import torch.distributed as dist

        box: list[Any] = [message]
        with _ended():
            dist.broadcast_object_list(box, src=0)
        sent: tuple[bool, object] = box[0]
        return sent


def world() -> World:
    """The world that the launcher's environment variables describe; joins nothing."""
    names = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    try:
        rank, size, local = (int(os.environ.get(name, least)) for name, least in names.items())
    except ValueError:
        raise UsageError(
            "RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers, as accelerate launch sets "
            "them; unset them to run one process"
        ) from None
    return World(rank, size, local)


@contextmanager
def joined(cards: bool = False) -> Iterator[World]:
    """The world with its process group, which lives as long as the block; where the `cards` talk to
    each other too, over NCCL. UsageError where the other processes cannot be reached."""
    here = world()
    if here.alone:
        yield here
        return
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    try:
        backend = "cpu:gloo,cuda:nccl" if cards and dist.is_nccl_available() else "gloo"
        store, rank, size = next(rendezvous("env://", timeout=LONGEST_START))
        dist.init_process_group(
            backend,
            store=store,
            rank=rank,
            world_size=size,
            timeout=LONGEST_WAIT,
        )
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"the {here.size} processes of this launch do not find each other "
            f"({str(error).splitlines()[0]}); start them with accelerate launch"
        ) from None
    try:
        yield here
    finally:
        dist.destroy_process_group()


@contextmanager
def measuring(split: bool) -> Iterator[World | None]:
    """The processes that measure for a command: all of the launch where they `split` the work,
    otherwise the main one by itself. None in a process that has nothing to do, after a line that
    says so."""
    here = world()
    if split:
        with joined() as together:
            yield together
    elif here.main:
        yield World()
    else:
        note(
            f"process {here.rank} of {here.size} measures nothing, since cards differ; --split "
            "deals the work to all of them"
        )
        yield None


@contextmanager
def _ended() -> Iterator[None]:
    try:
        yield
    except RuntimeError:
        raise UsageError(
            "another process of this launch has ended; the same command continues the run"
        ) from None
