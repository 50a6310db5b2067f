"""The decoders that the suites run over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest

from bench.decoding.decoder import Decoder, Settings, TargetInfo
from bench.decoding.drafts import worth
from bench.decoding.target import TargetModel
from bench.run.methods import discover, method, parse
from tests.decoding.known import Make
from tests.decoding.noisy import noisy_copy
from tests.decoding.scripted import CachedOracle, NoisyOracle, OracleSettings, SamplingDrafter
from tests.training.drafts import METHODS, checkpoint

# Where the defaults leave more than four in five drafted tokens rejected on the tiny targets.
PARAMETERS = {
    "prompt_lookup": "prompt_lookup(k=3)",
    "draft_model": "draft_model(k=3)",
    "suffix": "suffix(alpha=1)",
    "token_recycling": "token_recycling(nodes=8,depth=2,k=4)",
    "eagle3": "eagle3(nodes=10,depth=4,beam=3)",
    "hydra": "hydra(nodes=8)",
    "medusa": "medusa(nodes=8)",
    "medusa_typical": "medusa_typical(nodes=8)",
    "chimera": "chimera(nodes=10)",
    "chimera_plus": "chimera_plus(nodes=10,depth=4)",
    "chimera_block": "chimera_block(nodes=10,depth=4)",
    "dflash": "dflash(nodes=10)",
}
# The weights of a method: its own, or those of the method that it shares them with.
TRAINED = {method: method for method in METHODS}
TRAINED |= {"medusa_typical": "medusa", "dflash": "dflash_markov"}


def registered(text: str, model: str | None = None, tree: str | None = None) -> Make:
    """Makes a registered decoder from `name(key=value,...)`.

    On `model` with the weights that ship, skipped where there are none; otherwise with weights
    trained for the target in hand, one of the tests' own.
    """
    name = parse(text)[0]

    def make(target: TargetModel) -> Decoder:
        own = TRAINED.get(name) if model is None else None
        weights = {name: checkpoint(own, target)} if own else None
        if name == "draft_model" and model is None:
            weights = {name: noisy_copy(target.model)}
        chosen = method(text, discover(), weights, tree)
        assert chosen.decoder is not None
        info = TargetInfo(model or "", target.hidden_size, target.vocab_size, target.layers)
        reason = chosen.decoder.unavailable(info, chosen.settings)
        if reason is not None:
            pytest.skip(reason)
        return chosen.decoder(target, chosen.settings)

    return make


@contextmanager
def costs(node: float) -> Iterator[None]:
    """Decoders measure 1 for a draft, and for a forward 0.5 and `node` for each drafted node, so
    that nothing depends on this machine."""
    seconds = [1.0, *(0.5 + node * nodes for nodes in worth.SIZES)]
    with mock.patch.object(worth, "median_seconds", side_effect=seconds):
        yield


def with_costs(make: Make, node: float = 0.1) -> Make:
    """Makes a decoder with nodes=auto; see `costs`."""

    def made(target: TargetModel) -> Decoder:
        with costs(node):
            return make(target)

    return made


def oracle(**settings: Any) -> Make:
    """Makes a noisy oracle; the settings are those of `OracleSettings`."""
    return lambda target: NoisyOracle(target, OracleSettings(**settings))


def cached_oracle(target: TargetModel) -> CachedOracle:
    return CachedOracle(target, OracleSettings())


def sampling_drafter(target: TargetModel) -> Decoder:
    return SamplingDrafter(target, Settings())


SCRIPTED: dict[str, Make] = {
    "static_oracle": oracle(),
    "dynamic_oracle": oracle(dynamic=True),
    "cached_oracle": cached_oracle,
    "sampling_drafter": sampling_drafter,
}
LOSSLESS = tuple(name for name, point in discover().items() if point.load().lossless)
CASES = (
    {name: registered(PARAMETERS.get(name, name)) for name in LOSSLESS}
    | {
        "chimera_auto": with_costs(registered("chimera(nodes=auto,beam=3,depth=4)")),
        "eagle3_auto": with_costs(registered("eagle3(nodes=auto,depth=4,beam=3)")),
        "dflash_auto": with_costs(registered("dflash(nodes=auto,beam=3)")),
        "chimera_dynamic": registered("chimera(nodes=10,dynamic=true,beam=3,depth=4)"),
        "dflash_dynamic": registered("dflash(nodes=10,dynamic=true,beam=3)"),
        "medusa_lookup": registered("medusa(nodes=8,lookup=4)"),
        "chimera_lookup": registered("chimera(nodes=10,depth=2,lookup=4)"),
        "chimera_dynamic_lookup": registered("chimera(nodes=9,dynamic=true,beam=3,lookup=3)"),
    }
    | SCRIPTED
)
# At temperature 0 typical acceptance is the lossless rule.
GREEDY = CASES | {"medusa_typical": registered(PARAMETERS["medusa_typical"])}
each_decoder = pytest.mark.parametrize("make", GREEDY.values(), ids=GREEDY.keys())
