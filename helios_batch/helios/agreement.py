"""How much a generation agrees with another of the same row (pure)."""

from __future__ import annotations

from collections.abc import Sequence

from helios_batch.records import Generation
from helios_batch.spec_quality import Metric


def agreement(found: Generation, reference: Generation, metric: Metric) -> float:
    """Return the agreement in [0, 1] of a row's generation with its reference.

    See `QualitySpec` for the metrics. An error agrees with an error, and with nothing else.
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
