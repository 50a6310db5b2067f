"""A model spread over several devices: its device map, and caches kept in step."""

import torch
from transformers import LlamaForCausalLM

from baselines.lookahead import Lookahead, LookaheadSettings
from bench.decoding.cache import TreeCache
from bench.decoding.engines.eager import EagerTarget
from bench.decoding.sampling import Sampling
from bench.decoding.spread import SpreadCache, cache_of, layer_map, spread
from bench.run.runner import run_turn
from bench.targets.synthetic import config, predictable


def test_layers_are_spread_evenly_and_what_drafts_read_is_on_the_first_card() -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(config("synthetic:smollm2-135m"))  # 30 layers
    places = layer_map(model, 4)
    cards = [places[f"model.layers.{i}"] for i in range(30)]
    assert cards == sorted(cards)
    assert [cards.count(card) for card in range(4)] == [8, 7, 8, 7]
    others = {name: card for name, card in places.items() if ".layers." not in name}
    assert others.keys() == {"model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"}
    assert set(others.values()) == {0}


def test_a_cache_in_parts_gives_the_same_answer() -> None:
    model = predictable()[0]
    prompt = [3, 1, 4, 1, 5, 9, 2, 6, 3, 1, 4, 1, 5]
    whole, parted = EagerTarget(model), EagerTarget(model)
    assert not spread(model)
    shape = (model.config, torch.float32, torch.device("cpu"))
    parted.cache = SpreadCache([TreeCache.of(*shape, layers=1) for _ in range(2)])
    turns = [
        run_turn(Lookahead(target, LookaheadSettings()), prompt, Sampling(), 60, frozenset())
        for target in (whole, parted)
    ]
    assert turns[0].output_ids == turns[1].output_ids
    assert turns[0].accept_lengths == turns[1].accept_lengths
    assert max(turns[0].accept_lengths or []) > 1
    assert parted.cache.length == whole.cache.length
    assert isinstance(cache_of(model, *shape[1:]), TreeCache)
