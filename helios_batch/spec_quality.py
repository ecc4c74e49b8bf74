"""The quality contract of a job with `depth: auto`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from helios_batch.spec_section import Real, Section
from helios_batch.units import parse_share_or_count

Guarantee = Literal["probability", "expectation"]
Metric = Literal["label", "exact", "token", "rouge_l"]
_NAMES: dict[Metric, str] = {
    "label": "the label",
    "exact": "the whole text",
    "token": "tokens",
    "rouge_l": "ROUGE-L",
}
_USUAL = 0.95


def _share(value: object) -> object:
    return parse_share_or_count(value) if isinstance(value, str) else value


Share = Annotated[Real, BeforeValidator(_share)]


class QualitySpec(Section):
    """What is promised of a job's rows, against the same model at full depth.

    `min_agreement`, 0.01 to 0.9999, is the least mean agreement by `metric`: `label` (the same
    label), `exact` (the same text), `token` (share of tokens that are the same at the same place)
    or `rouge_l` (F1 of the longest common subsequence of words); by default `label` for labels,
    `token` otherwise. With `guarantee: probability` it holds with a chance of `confidence` (default
    0.95) over the random rows that are calibrated on; with `expectation`, on average over them.
    `audit_fraction` of the rows are audited while the job runs: those of them that leave early are
    run at full depth too.
    """

    min_agreement: Share = Field(ge=0.01, le=0.9999)
    confidence: Annotated[Share, Field(ge=0.5, le=0.9999)] | None = None
    guarantee: Guarantee = "probability"
    metric: Metric | None = None
    calibration_rows: int = Field(default=300, ge=20)
    audit_fraction: Share = Field(default=0.02, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _confidence_goes_with_probability(self) -> Self:
        if self.guarantee == "expectation" and self.confidence is not None:
            raise ValueError("confidence goes with guarantee: probability; leave it out")
        return self

    @property
    def chance(self) -> float:
        """The chance with which the promise holds, if it is one in probability."""
        return _USUAL if self.confidence is None else self.confidence

    def describe(self, metric: Metric) -> str:
        """Say what is promised, for people; `metric` is the one in force."""
        held = (
            f"with a confidence of {self.chance:.0%}"
            if self.guarantee == "probability"
            else "on average over the rows drawn to calibrate on"
        )
        return f"{self.min_agreement:.1%} agreement in {_NAMES[metric]} with full depth, {held}"
