"""A model that often says the same as another: a copy of it, saved, with noise on its LM head."""

from __future__ import annotations

import copy
import hashlib
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bench.targets.synthetic import tokenizer

NOISE = {64: 0.4, 6: 1.0}  # by vocabulary, in standard deviations of the head's weights

_FOLDER = cache(tempfile.TemporaryDirectory)  # one, removed at exit


def noisy_copy(model: Any) -> str:
    """The folder of the copy, the same for the same weights."""
    head = model.get_output_embeddings().weight
    folder = Path(_FOLDER().name) / hashlib.sha256(head.cpu().numpy().tobytes()).hexdigest()[:16]
    if not folder.exists():
        copied = copy.deepcopy(model).float().cpu()
        head = copied.get_output_embeddings().weight
        generator = torch.Generator().manual_seed(0)
        head.add_(NOISE[len(head)] * head.std() * torch.randn(head.shape, generator=generator))
        copied.save_pretrained(folder)
        vocab = copied.config.vocab_size
        tokenizer(vocab, copied.config.max_position_embeddings).save_pretrained(folder)
    return str(folder)
