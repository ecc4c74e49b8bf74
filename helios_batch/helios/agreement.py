"""How much a generation agrees with another of the same row (pure)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from helios_batch.records import Generation, Prompt
from helios_batch.spec_quality import LARGEST_EXCESS, Metric

Score = Callable[[Sequence[Prompt], Sequence[Sequence[int]]], Sequence[float]]
"""The mean log-probabilities of tokens after their prompts, under the full model."""
_Key = tuple[int, tuple[int, ...]]


def agreements(
    prompts: Sequence[Prompt],
    found: Sequence[Sequence[Generation]],
    reference: Sequence[Generation],
    metric: Metric,
    score: Score,
) -> list[list[float]]:
    """Return the agreements in [0, 1] of rows' generations with their references, [stages, rows].

    Args:
        prompts: [rows], each row once.
        found: [stages, rows] what each stage said.
        reference: [rows] what full depth said.
        metric: what rows are compared by.
        score: called at most once, for the metric perplexity: with the texts that differ from
            their references, and those references.
    """
    scores: dict[_Key, float] = {}
    if metric == "perplexity":
        by_row = {prompt.row: prompt for prompt in prompts}
        wanted = _differing(found, reference)
        if wanted:
            given = score([by_row[row] for row, _ in wanted], [tokens for _, tokens in wanted])
            scores = dict(zip(wanted, given, strict=True))
    return [
        [agreement(*pair, metric, scores) for pair in zip(stage, reference, strict=True)]
        for stage in found
    ]


def _differing(
    found: Sequence[Sequence[Generation]], reference: Sequence[Generation]
) -> list[_Key]:
    """Return each text that is not its reference's, and each such reference, once."""
    pairs = [pair for stage in found for pair in zip(stage, reference, strict=True)]
    differ = [
        (one, other)
        for one, other in pairs
        if one.error is other.error is None and one.token_ids != other.token_ids
    ]
    return list(dict.fromkeys((each.row, each.token_ids) for pair in differ for each in pair))


def agreement(
    found: Generation,
    reference: Generation,
    metric: Metric,
    scores: Mapping[_Key, float],
) -> float:
    """Return the agreement in [0, 1] of a row's generation with its reference.

    See `QualitySpec` for the metrics; for perplexity it is 1 - `excess_loss`. An error agrees with
    an error, and with nothing else. `scores` are of texts by row and tokens, for perplexity only.
    """
    if found.error is not None or reference.error is not None:
        return float(found.error is not None and reference.error is not None)
    match metric:
        case "label":
            return float(found.label == reference.label)
        case "exact":
            return float(found.text == reference.text)
        case "token":
            return token_agreement(found.token_ids, reference.token_ids)
        case "rouge_l":
            return rouge_l((found.text or "").split(), (reference.text or "").split())
        case "perplexity" if found.token_ids == reference.token_ids:
            return 1.0
        case "perplexity":
            mine, best = (scores[each.row, each.token_ids] for each in (found, reference))
            return 1 - excess_loss(best - mine)


def excess_loss(excess: float) -> float:
    """Return the loss in [0, 1] of a text that is `excess` nats a token less likely than another.

    From 0 for none, or for a likelier text, to 1 at `LARGEST_EXCESS`; 1 if it can't be told.
    """
    return max(excess, 0.0) / LARGEST_EXCESS if excess < LARGEST_EXCESS else 1.0


def token_agreement(found: Sequence[int], reference: Sequence[int]) -> float:
    """Return the share of places at which both have the same token; a place that only one has
    counts against it."""
    longest = max(len(found), len(reference))
    same = sum(a == b for a, b in zip(found, reference, strict=False))
    return same / longest if longest else 1.0


def rouge_l(found: Sequence[str], reference: Sequence[str]) -> float:
    """Return the F1 of the longest common subsequence (Lin, ROUGE, 2004); 1 if both are empty."""
    if not found or not reference:
        return float(len(found) == len(reference))
    lengths = [0] * (len(reference) + 1)
    for word in found:
        diagonal = 0
        for place, other in enumerate(reference, start=1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if word == other else max(above, lengths[place - 1])
            diagonal = above
    return 2 * lengths[-1] / (len(found) + len(reference))


def row_confidence(generation: Generation) -> float:
    """Return how sure a row's exit was of it: the mean over its tokens."""
    sure = generation.exit.token_confidences if generation.exit else ()
    return sum(sure) / len(sure) if sure else 0.0
