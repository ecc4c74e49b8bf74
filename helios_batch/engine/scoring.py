"""Scores: the log-probability of given tokens after a prompt, under the loaded layers."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from helios_batch.engine.branches import BranchAttention
from helios_batch.engine.head import log_probability
from helios_batch.engine.kv_cache import KVCache
from helios_batch.engine.memory import StepShape
from helios_batch.engine.runner import ROW_GRANULE
from helios_batch.engine.slots import capacity_class
from helios_batch.engine.tape import Tape, TapeStep, tape_steps
from helios_batch.models.choices import EncodedChoices
from helios_batch.models.decoder import Decoder
from helios_batch.records import EngineStats, RowError


@torch.inference_mode()
def score_step(step: TapeStep, decoder: Decoder, cache: KVCache) -> None:
    """Run a step's chunks and add what they tell to the scores of their tapes.

    Args:
        step: chunks of tapes, whose slots lie in slab 0 of the cache.
        decoder: the loaded layers.
        cache: arranged as one slab.
    """
    device = decoder.weights.embedding.device
    tokens: list[int] = []
    positions: list[int] = []
    ends: dict[int, int] = {}  # place in T -> row for the head
    wanted: list[tuple[Tape, int]] = []
    rows: list[int] = []
    targets: list[int] = []
    for chunk in step.chunks:
        tape, first = chunk.tape, len(tokens) - chunk.start
        tokens += tape.tokens[chunk.start : chunk.stop]
        positions += tape.positions[chunk.start : chunk.stop]
        for place, token, choice in tape.targets:
            if chunk.start <= place < chunk.stop:
                wanted.append((tape, choice))
                rows.append(ends.setdefault(first + place, len(ends)))
                targets.append(token)
    attention = BranchAttention(decoder.config, decoder.kinds, cache, step, device)
    hidden = decoder.forward(
        torch.tensor(_padded(tokens), device=device),
        torch.tensor(_padded(positions), device=device),
        attention,
    )
    if not wanted:
        return
    normed = decoder.final_norm(hidden[torch.tensor(_padded(list(ends)), device=device)])
    found = log_probability(
        normed,
        decoder.head,
        torch.tensor(rows, device=device),
        torch.tensor(targets, device=device),
    )
    for (tape, choice), value in zip(wanted, found.tolist(), strict=True):
        tape.scores[choice] += value


def score_completions(
    prompts: Sequence[list[int] | RowError],
    completions: Sequence[Sequence[int]],
    decoder: Decoder,
    cache: KVCache,
    shape: StepShape,
    stats: EngineStats,
) -> list[float]:
    """Return the mean log-probability of each completion's tokens after its prompt, in nats.

    A completion is scored as a label's only choice would be: in chunks, its prompt with it.

    Args:
        prompts: tokens of each prompt.
        completions: tokens of each completion, one or more.
        decoder: the loaded layers.
        cache: scratch; what it holds is lost.
        shape: limits of one step.
        stats: what the steps take is counted here.

    Raises:
        ValueError: a prompt can't be run, or not with its completion.
    """
    pairs = enumerate(zip(prompts, completions, strict=True))
    # one after the other: the tapes of many rows would be long lists
    tapes = (_tape(index, *pair, decoder, cache) for index, pair in pairs)
    found = [0.0] * len(prompts)
    cache.arrange(cache.tokens)
    for step in tape_steps(tapes, shape, decoder.config.context_length, cache.tokens):
        started = time.perf_counter()
        score_step(step, decoder, cache)
        for chunk in step.chunks:
            if chunk.ends_tape:
                tape = chunk.tape
                found[tape.index] = tape.scores[0] / len(tape.encoded.choices[0])
        stats.prefill_seconds += time.perf_counter() - started
        stats.largest_batch = max(stats.largest_batch, len(step.chunks))
    return found


def _tape(
    index: int,
    prompt: list[int] | RowError,
    completion: Sequence[int],
    decoder: Decoder,
    cache: KVCache,
) -> Tape:
    if isinstance(prompt, RowError):
        raise ValueError(f"prompt {index} can't be run: {prompt.message}")
    if not completion:
        raise ValueError(f"completion {index} has no tokens to score")
    tape = Tape(index, index, EncodedChoices(len(prompt), prompt, (list(completion),)))
    context, held = decoder.config.context_length, cache.tokens
    if tape.encoded.longest > context or capacity_class(len(tape)) > held:
        raise ValueError(
            f"prompt and completion {index} have {tape.encoded.longest} tokens; the model's "
            f"context holds {context}, the KV cache {held}"
        )
    highest = max(*prompt, *completion)
    if highest >= decoder.config.vocab_size:
        raise ValueError(
            f"prompt or completion {index} has a token {highest}, unknown to the model"
        )
    return tape


def _padded(values: list[int]) -> list[int]:
    """Fill up with zeros, to rows that are ignored; see `runner.ROW_GRANULE`."""
    return values + [0] * (-len(values) % ROW_GRANULE)
