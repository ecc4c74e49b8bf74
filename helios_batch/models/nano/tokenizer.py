"""The tokenizer that the two models share: a byte-level BPE trained on both kinds of text."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|end|>"  # token 0: stands after every document, and ends what a model writes
_SAMPLE = 3_000_000  # characters of each kind


def train_tokenizer(kinds: Sequence[Sequence[str]], vocab_size: int, seed: int) -> Tokenizer:
    """Train on a seeded sample of the documents, as many characters of each kind."""
    texts: list[str] = []
    for documents in kinds:
        shuffled = list(documents)
        random.Random(seed).shuffle(shuffled)
        left = _SAMPLE
        for text in shuffled:
            if left <= 0:
                break
            texts.append(text[:left])
            left -= len(text)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: Sequence[str]) -> NDArray[np.uint16]:
    """Return the documents as one stream of token ids, each followed by `END`."""
    pieces = []
    for encoding in tokenizer.encode_batch_fast(list(documents), add_special_tokens=False):
        pieces.append(np.asarray([*encoding.ids, 0], dtype=np.uint16))
    return np.concatenate(pieces)
