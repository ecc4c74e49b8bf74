"""Scores: the log-probability of given tokens after a prompt, under the loaded layers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch

from helios_batch.engine.batch import padded
from helios_batch.engine.branches import BranchAttention
from helios_batch.engine.head import log_probability
from helios_batch.engine.kv_cache import KVCache
from helios_batch.engine.memory import StepShape
from helios_batch.engine.slots import capacity_class
from helios_batch.engine.tape import StepTargets, Tape, TapeStep, tape_steps
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
    attention = BranchAttention(decoder.config, decoder.kinds, cache, step, device)
    hidden = decoder.forward(*step_tokens(step, device), attention)
    for tape, choice, value in target_scores(decoder, hidden, StepTargets.of(step)):
        tape.scores[choice] += value


def step_tokens(step: TapeStep, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a step's tokens and their positions, both [T] int64 and padded."""
    tokens: list[int] = []
    positions: list[int] = []
    for chunk in step.chunks:
        tokens += chunk.tape.tokens[chunk.start : chunk.stop]
        positions += chunk.tape.positions[chunk.start : chunk.stop]
    return (
        torch.tensor(padded(tokens), device=device),
        torch.tensor(padded(positions), device=device),
    )


def target_scores(
    decoder: Decoder, hidden: torch.Tensor, targets: StepTargets
) -> Iterator[tuple[Tape, int, float]]:
    """Yield tape, choice, and the log-probability of each target at a decoder's exit.

    `hidden` [T, hidden_size] has passed the exit, all but its norm and head.
    """
    if not targets.wanted:
        return
    device = hidden.device
    normed = decoder.final_norm(hidden[torch.tensor(padded(targets.ends), device=device)])
    rows = torch.tensor(targets.rows, device=device)
    tokens = torch.tensor(targets.tokens, device=device)
    found = log_probability(normed, decoder.head, rows, tokens)
    for (tape, choice), value in zip(targets.wanted, found.tolist(), strict=True):
        yield tape, choice, value


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
