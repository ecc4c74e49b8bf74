"""The quality contract of a job with `depth: auto`."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from helios_batch.spec_section import Real, Section
from helios_batch.units import parse_share_or_count

Guarantee = Literal["probability", "expectation"]
Metric = Literal["label", "exact", "token", "rouge_l", "perplexity"]
_NAMES: dict[Metric, str] = {
    "label": "the label",
    "exact": "the whole text",
    "token": "tokens",
    "rouge_l": "ROUGE-L",
}
_USUAL = 0.95
LARGEST_EXCESS = 2.0
"""Nats a token: a row whose text is less likely than full depth's by more counts as by this much,
as the contract's statistics need a largest loss."""


def _share(value: object) -> object:
    return parse_share_or_count(value) if isinstance(value, str) else value


Share = Annotated[Real, BeforeValidator(_share)]


def loss_of(value: float, metric: Metric | None) -> float:
    """Return the mean loss in [0, 1] that an agreement, or a ratio of perplexities, stands for."""
    return math.log(value) / LARGEST_EXCESS if metric == "perplexity" else 1 - value


def value_of(loss: float, metric: Metric | None) -> float:
    """Return a mean loss in the metric's own terms: an agreement, or a ratio of perplexities.

    It undoes `loss_of`; the ratio rises with the loss, the agreement falls.
    """
    return math.exp(LARGEST_EXCESS * loss) if metric == "perplexity" else 1 - loss


class QualitySpec(Section):
    """What is promised of a job's rows, against the same model at full depth.

    `min_agreement`, 0.01 to 0.9999, is the least mean agreement by `metric`: `label` (the same
    label), `exact` (the same text), `token` (share of tokens that are the same at the same place)
    or `rouge_l` (F1 of the longest common subsequence of words); by default `label` for labels,
    `token` otherwise. With the metric `perplexity` it is `max_perplexity` instead, 1.001 to 7: the
    largest ratio of the perplexity that a row's text has to full depth, to that of full depth's
    own text for the row, in the geometric mean over rows; a text that is likelier than full depth's
    counts as equal, and one beyond `LARGEST_EXCESS` as that.

    With `guarantee: probability` it holds with a chance of `confidence` (default 0.95) over the
    random rows that are calibrated on; with `expectation`, on average over them. `audit_fraction`
    of the rows are audited while the job runs: those of them that leave early are run at full depth
    too.
    """

    min_agreement: Annotated[Share, Field(ge=0.01, le=0.9999)] | None = None
    max_perplexity: Annotated[Real, Field(ge=1.001, le=7.0)] | None = None
    confidence: Annotated[Share, Field(ge=0.5, le=0.9999)] | None = None
    guarantee: Guarantee = "probability"
    metric: Metric | None = None
    calibration_rows: int = Field(default=300, ge=20)
    audit_fraction: Share = Field(default=0.02, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _bound_goes_with_metric(self) -> Self:
        if self.metric == "perplexity":
            if self.min_agreement is not None:
                raise ValueError(
                    "min_agreement does not go with metric perplexity: write max_perplexity, such "
                    "as 1.1, instead"
                )
            if self.max_perplexity is None:
                raise ValueError("metric perplexity needs max_perplexity, such as 1.1")
        elif self.max_perplexity is not None:
            raise ValueError(
                "max_perplexity goes with metric: perplexity; write that, or min_agreement instead"
            )
        elif self.min_agreement is None:
            raise ValueError(
                "say what is promised: min_agreement, such as 0.95, or with metric: perplexity "
                "max_perplexity, such as 1.1"
            )
        return self

    @model_validator(mode="after")
    def _confidence_goes_with_probability(self) -> Self:
        if self.guarantee == "expectation" and self.confidence is not None:
            raise ValueError("confidence goes with guarantee: probability; leave it out")
        return self

    @property
    def asked(self) -> float:
        """The least agreement, or the largest ratio of perplexities."""
        asked = self.min_agreement if self.max_perplexity is None else self.max_perplexity
        assert asked is not None, "one of the two is given"
        return asked

    @property
    def bound(self) -> float:
        """The largest mean loss, over 0 and under 1."""
        return loss_of(self.asked, self.metric)

    @property
    def chance(self) -> float:
        """The chance with which the promise holds, if it is one in probability."""
        return _USUAL if self.confidence is None else self.confidence

    @property
    def promised(self) -> str:
        """What is kept, for people."""
        if self.metric == "perplexity":
            return f"a perplexity of at most {self.asked:g} times full depth's"
        return f"an agreement of {self.asked:.1%}"

    def describe(self, metric: Metric) -> str:
        """Say what is promised, for people; `metric` is the one in force."""
        held = (
            f"with a confidence of {self.chance:.0%}"
            if self.guarantee == "probability"
            else "on average over the rows drawn to calibrate on"
        )
        if metric == "perplexity":
            return f"{self.promised}, {held}"
        return f"{self.asked:.1%} agreement in {_NAMES[metric]} with full depth, {held}"
