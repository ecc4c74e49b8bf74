"""Trying a candidate: some of the job's requests at full depth, with all its exits observed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from helios_batch.engine.contender import Contender
from helios_batch.engine.engine import Engine
from helios_batch.helios.agreement import row_confidence
from helios_batch.helios.history import BINS, ModelHistory, Request
from helios_batch.records import Generation, Prompt
from helios_batch.spec import SamplingSpec


@dataclass(frozen=True)
class Seen:
    """What a depth said of a request: at each place whether it agrees, and how sure it is."""

    agrees: tuple[bool, ...]
    confidences: tuple[float, ...]
    surprise: float


class Task(Protocol):
    """What a job has an engine do."""

    def answer(self, engine: Engine, prompts: Sequence[Prompt]) -> list[Generation]:
        """Run prompts."""
        ...

    def look(
        self, engine: Engine, prompts: Sequence[Prompt], answers: Sequence[Generation]
    ) -> list[Seen]:
        """Say what the engine, at the depth it is at, makes of prompts that have answers."""
        ...


@dataclass(frozen=True)
class Generate:
    """Text is generated: an exit is observed along the tokens that full depth gave."""

    sampling: SamplingSpec

    def answer(self, engine: Engine, prompts: Sequence[Prompt]) -> list[Generation]:
        """Generate."""
        return engine.generate(prompts, self.sampling)

    def look(
        self, engine: Engine, prompts: Sequence[Prompt], answers: Sequence[Generation]
    ) -> list[Seen]:
        """Follow the answers' tokens."""
        found = engine.follow(prompts, [answer.token_ids for answer in answers])
        return [
            Seen(
                tuple(ours == said for ours, said in zip(f.tokens, a.token_ids, strict=True)),
                f.confidences,
                f.surprise,
            )
            if f is not None
            else _nothing(len(a.token_ids))
            for f, a in zip(found, answers, strict=True)
        ]


@dataclass(frozen=True)
class Label:
    """Rows are labelled: a row counts as one token."""

    choices: tuple[str, ...]

    def answer(self, engine: Engine, prompts: Sequence[Prompt]) -> list[Generation]:
        """Label."""
        return engine.label(prompts, self.choices)

    def look(
        self, engine: Engine, prompts: Sequence[Prompt], answers: Sequence[Generation]
    ) -> list[Seen]:
        """Label again; labels have no perplexity."""
        found = engine.label(prompts, self.choices)
        return [
            Seen((f.label == a.label,), (row_confidence(f),), 0.0)
            for f, a in zip(found, answers, strict=True)
        ]


def profile(
    engine: Engine,
    contender: Contender,
    history: ModelHistory,
    prompts: Sequence[Prompt],
    task: Task,
    threshold: float,
) -> list[Generation]:
    """Run prompts at the deepest depth that memory holds, and look at the others along them.

    The table gets what was observed, and what the answers took.

    Args:
        engine: of the candidate at that depth; at its shallowest one when this returns.
        contender: the candidate.
        history: its entry in the table.
        prompts: requests of the job.
        task: what is done with them.
        threshold: least confidence of a token that an exit is sure of.

    Returns:
        The answers of all prompts at the deepest depth.

    Raises:
        ModelError: the weights can't be read.
    """
    places = [place for place, depth in enumerate(history.depths) if depth.batch]
    answers = task.answer(engine, prompts)
    spent = engine.stats.prefill_seconds + engine.stats.decode_seconds
    kept = [(p, a) for p, a in zip(prompts, answers, strict=True) if a.error is None]
    if not kept:
        return answers
    known_prompts, known = [p for p, _ in kept], [a for _, a in kept]
    seen: dict[int, list[Seen]] = {}
    for place in reversed(places):  # towards fewer layers, little is to be read
        layers = contender.depths[place]
        engine.move_to(layers, contender.exits.get(layers))
        seen[place] = task.look(engine, known_prompts, known)
    tokens = sum(len(found.agrees) for found in seen[places[-1]])
    history.depths[places[-1]].tried.add(spent, tokens)
    nothing = [_nothing(len(found.agrees)) for found in seen[places[-1]]]
    by_depth = [seen.get(place, nothing) for place in range(len(history.depths))]
    rows = [prompt.row for prompt in known_prompts]
    history.observe(
        [
            _request(row, [found[i] for found in by_depth], seen[places[-1]][i].surprise, threshold)
            for i, row in enumerate(rows)
        ],
        [_reliability(found) for found in by_depth],
    )
    return answers


def _nothing(tokens: int) -> Seen:
    """Return what a depth says that the memory does not hold."""
    return Seen((False,) * tokens, (0.0,) * tokens, 0.0)


def _request(row: int, by_depth: list[Seen], surprise: float, threshold: float) -> Request:
    """Count what the depths, shallow first, said of a request."""
    sure = [[c >= threshold for c in seen.confidences] for seen in by_depth]
    # at each place, whether some depth so far was sure
    so_far = [[False] * len(sure[0])]
    for flags in sure:
        so_far.append([a or b for a, b in zip(so_far[-1], flags, strict=True)])
    counts = [sum(flags) for flags in so_far]
    first = [after - before for before, after in pairwise(counts)]
    return Request(
        row=row,
        tokens=len(sure[0]),
        sure=tuple(map(sum, sure)),
        agreeing=tuple(sum(seen.agrees) for seen in by_depth),
        first_sure=(*first, len(sure[0]) - counts[-1]),
        surprise=surprise,
    )


def _reliability(seen: list[Seen]) -> list[tuple[int, int]]:
    """Count agreeing tokens, and all, by bin of confidence."""
    counts = [(0, 0)] * BINS
    for found in seen:
        for agrees, confidence in zip(found.agrees, found.confidences, strict=True):
            place = min(BINS - 1, int(confidence * BINS))
            counts[place] = (counts[place][0] + agrees, counts[place][1] + 1)
    return counts
