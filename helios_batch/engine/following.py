"""What a model says along tokens that are given: its own next token at each place, and how sure."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from helios_batch.engine.attention import ChunkPlace, PrefillAttention
from helios_batch.engine.batch import padded
from helios_batch.engine.head import best_token, log_probability
from helios_batch.engine.loaded import LoadedModel
from helios_batch.engine.slots import choose_slab
from helios_batch.spec import Confidence


@dataclass(frozen=True)
class Followed:
    """At each place of a completion: the model's own token there and how sure it is of it.

    `surprise` is the summed negative log-probability, in nats, of the given tokens; at a depth
    below the full one it is not asked for, and 0.
    """

    tokens: tuple[int, ...]
    confidences: tuple[float, ...]
    surprise: float


@torch.inference_mode()
def follow(
    loaded: LoadedModel, prompt: list[int], completion: list[int], confidence: Confidence
) -> Followed:
    """Run a prompt and a completion through the loaded layers; what the KV cache held is lost.

    Args:
        loaded: the model at a depth.
        prompt: one token or more.
        completion: one token or more; with the prompt no longer than the memory plan allows.
        confidence: how a token's confidence is measured.
    """
    decoder, cache, shape = loaded.decoder, loaded.cache, loaded.shape
    device = decoder.weights.embedding.device
    context = prompt + completion[:-1]
    cache.arrange(choose_slab(loaded.plan.kv_tokens, len(context)))
    said: list[int] = []
    sure: list[float] = []
    surprise = 0.0
    for start in range(0, len(context), shape.chunk_tokens):
        stop = min(start + shape.chunk_tokens, len(context))
        place = ChunkPlace(0, 0, cache.slab_tokens, start, stop)
        attention = PrefillAttention(decoder.config, decoder.kinds, cache, [place], device)
        hidden = decoder.forward(
            torch.tensor(padded(context[start:stop]), device=device),
            torch.tensor(padded(list(range(start, stop))), device=device),
            attention,
        )
        first = max(start, len(prompt) - 1)
        for begin in range(first, stop, shape.max_batch):
            end = min(begin + shape.max_batch, stop)
            rows = torch.arange(begin - start, end - start, device=device)
            normed = decoder.final_norm(hidden[rows])
            temperature, margin = decoder.exit.temperature, confidence == "margin"
            best = best_token(normed, decoder.head, temperature, margin)
            said += best.token.tolist()
            sure += (best.probability - best.runner_up if margin else best.probability).tolist()
            if decoder.depth < decoder.config.num_layers:
                continue
            given = completion[begin - len(prompt) + 1 : end - len(prompt) + 1]
            wanted = torch.tensor(given, device=device)
            at = torch.arange(len(given), device=device)
            surprise -= float(log_probability(normed, decoder.head, at, wanted).sum())
    return Followed(tuple(said), tuple(sure), surprise)
