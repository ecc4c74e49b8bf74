"""Requests without texts: how sure each exit of each model is of each token (no torch).

How hard a token is for a model is a standard normal number; an exit is sure of all tokens that are
easier than its share of sure ones. The number is a sum of three: of a stretch of requests, such as
a source of them, of a request, and of the token itself. So requests are alike that follow each
other. Between models, tokens and requests are alike, and stretches are not: what is hard for one
model for long may be easy for the other.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from helios_batch.simulate.models import LIKENESS, THRESHOLD, SimulatedModel

Floats = NDArray[np.float64]
STRETCH = 0.15
"""Share of the variance that is of stretches (assumed)."""
_REQUEST = 0.05
_STRETCH_REQUESTS = 40
_LOGIT_SLOPE = 2.0
_LONGEST = 256


@dataclass(frozen=True)
class Requests:
    """A job.

    Args:
        prompts: [requests] tokens of each prompt.
        starts: [requests + 1] where each one's tokens begin among all.
        confidences: by model and depth, how sure the exit is of each token, [tokens].
    """

    prompts: tuple[int, ...]
    starts: tuple[int, ...]
    confidences: dict[str, tuple[array[float], ...]]

    @property
    def count(self) -> int:
        """How many requests there are."""
        return len(self.prompts)

    @property
    def tokens(self) -> int:
        """How many tokens are generated in all."""
        return self.starts[-1]

    def outputs(self, row: int) -> int:
        """Return how many tokens a request gets."""
        return self.starts[row + 1] - self.starts[row]

    def of(self, model: str, place: int, row: int) -> array[float]:
        """Return how sure a depth is of a request's tokens."""
        return self.confidences[model][place][self.starts[row] : self.starts[row + 1]]


def draw_requests(
    models: Sequence[SimulatedModel], count: int, seed: int, stretch: float = STRETCH
) -> Requests:
    """Draw a job for one model or two.

    Prompts have 128 tokens and outputs 90 in the median, at most 512 and 256 (log-normal). A
    stretch has 40 requests in the mean. Over the job, each model's stretches have a mean of 0 and
    the variance that they should, so that its share of sure tokens is what is known of it.

    Args:
        models: that the requests may run on.
        count: requests.
        seed: of everything that is drawn.
        stretch: share of the variance that is of stretches.
    """
    random = np.random.default_rng(seed)
    prompts = np.clip(random.lognormal(np.log(128), 0.6, count), 16, 2 * _LONGEST).astype(int)
    outputs = np.clip(random.lognormal(np.log(90), 0.5, count), 16, _LONGEST).astype(int)
    starts = np.concatenate([[0], np.cumsum(outputs)])
    stretch_of = np.cumsum(random.random(count) < 1 / _STRETCH_REQUESTS)
    alike = LIKENESS / (1 - stretch)
    weights = np.bincount(stretch_of, outputs).astype(np.float64)
    stretches = _unlike(random, len(models), weights)
    rows = _alike(random, len(models), count, alike)
    tokens = _alike(random, len(models), int(starts[-1]), alike)
    hard = stretch**0.5 * np.repeat(stretches[:, stretch_of], outputs, axis=1)
    hard += _REQUEST**0.5 * np.repeat(rows, outputs, axis=1)
    hard += (1 - stretch - _REQUEST) ** 0.5 * tokens
    confidences = {
        model.name: tuple(
            array("d", _confidence(ndtri(sure) - own).tobytes()) for sure in model.sure
        )
        for model, own in zip(models, hard, strict=True)
    }
    return Requests(tuple(prompts.tolist()), tuple(starts.tolist()), confidences)


def _confidence(margin: Floats) -> Floats:
    """Return confidences that are over the threshold where the margin is over 0."""
    at_threshold = np.log(THRESHOLD / (1 - THRESHOLD))
    found: Floats = 1 / (1 + np.exp(-(at_threshold + _LOGIT_SLOPE * margin)))
    return found


def _alike(random: np.random.Generator, models: int, count: int, likeness: float) -> Floats:
    """Draw standard normal numbers that correlate between the models, [models, count]."""
    common = random.standard_normal(count)
    own = random.standard_normal((models, count))
    drawn: Floats = likeness**0.5 * common + (1 - likeness) ** 0.5 * own
    return drawn


def _unlike(random: np.random.Generator, models: int, weights: Floats) -> Floats:
    """Draw numbers of mean 0, variance 1 and no correlation, by weights, [models, weights]."""
    drawn: Floats = random.standard_normal((models, len(weights)))
    shares = weights / weights.sum()
    found: list[Floats] = []
    for one in drawn:
        own = one - (one * shares).sum()
        for other in found:
            own = own - (own * other * shares).sum() * other
        found.append(own / max(1e-9, (own * own * shares).sum()) ** 0.5)
    return np.array(found)
