"""The quality contract of a job with `depth: auto`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from helios_batch.spec_section import Real, Section
from helios_batch.units import parse_share_or_count

Metric = Literal["label", "exact", "token", "rouge_l"]
_NAMES: dict[Metric, str] = {
    "label": "the label",
    "exact": "the whole text",
    "token": "tokens",
    "rouge_l": "ROUGE-L",
}


def _share(value: object) -> object:
    return parse_share_or_count(value) if isinstance(value, str) else value


Share = Annotated[Real, BeforeValidator(_share)]


class QualitySpec(Section):
    """What is promised of a job's rows, against the same model at full depth.

    `min_agreement` is the least mean agreement by `metric`: `label` (the same label), `exact` (the
    same text), `token` (share of tokens that are the same at the same place) or `rouge_l` (F1 of
    the longest common subsequence of words); by default `label` for labels, `token` otherwise.
    With `guarantee: probability` it holds with probability `confidence` over the random rows that
    are calibrated on; with `expectation`, on average over them. `audit_fraction` of the rows that
    leave early are run at full depth too, while the job runs.
    """

    min_agreement: Share = Field(gt=0.0, lt=1.0)
    confidence: Share = Field(default=0.95, ge=0.5, lt=1.0)
    guarantee: Literal["probability", "expectation"] = "probability"
    metric: Metric | None = None
    calibration_rows: int = Field(default=300, ge=20)
    audit_fraction: Share = Field(default=0.02, ge=0.0, le=1.0)

    def describe(self, metric: Metric) -> str:
        """Say what is promised, for people; `metric` is the one in force."""
        held = (
            f"with a confidence of {self.confidence:.0%}"
            if self.guarantee == "probability"
            else "on average over the rows drawn to calibrate on"
        )
        return f"{self.min_agreement:.1%} agreement in {_NAMES[metric]} with full depth, {held}"
