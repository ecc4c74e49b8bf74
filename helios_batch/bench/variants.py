"""The same job under one policy after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helios_batch.spec import JobSpec

_OWN = ("depth", "quality", "policy", "models", "objective")


@dataclass(frozen=True)
class Variant:
    """A job spec that writes to its own folder; `name` says what differs."""

    name: str
    spec: JobSpec


def variants(spec: JobSpec, folder: Path, bounds: Sequence[float] = ()) -> Iterator[Variant]:
    """Yield a job under each policy that it can be run under, full depth first.

    Of several models, policies that know one run on each of them. `bounds` are promises of the
    job's metric that are kept besides, on the first.

    Args:
        spec: the job; its own policy lends threshold, window and so on to all.
        folder: where the variants' outputs go.
        bounds: least agreements, or with the metric perplexity largest ratios.
    """
    data = spec.model_dump(mode="json")
    own: dict[str, Any] = dict(data["policy"] or {"type": "helios"})
    quality: dict[str, Any] = dict(data["quality"] or {})
    perplexity = quality.get("metric") == "perplexity"

    def made(name: str, **changes: Any) -> Variant:
        parts = {"output": data["output"] | {"path": str(folder / name.replace(" ", "-"))}}
        kept = {key: value for key, value in data.items() if key not in _OWN}
        return Variant(name, JobSpec.model_validate(kept | parts | changes, strict=False))

    def policy(kind: str) -> dict[str, Any]:
        return {"depth": "auto", "policy": own | {"type": kind}}

    alone = {"resources": data["resources"] | {"max_batch": 1}}
    for model in spec.models:
        beside = f" {model}" if len(spec.models) > 1 else ""
        one = {"models": [model]}
        yield made(f"vanilla{beside}", depth="full", **one)
        yield made(f"ee batch 1{beside}", **policy("ee"), **one, **alone)
        yield made(f"ee batched{beside}", **policy("ee"), **one)
        yield made(f"helios-single{beside}", **policy("helios-single"), **one)
    if len(spec.models) > 1:
        yield made("helios batch 1", **policy("helios"), models=list(spec.models), **alone)
        yield made("helios", **policy("helios"), models=list(spec.models))
    for bound in bounds:
        key = "max_perplexity" if perplexity else "min_agreement"
        asked = quality | {"min_agreement": None, "max_perplexity": None} | {key: bound}
        name = f"promise {'perplexity ' if perplexity else ''}{bound:g}"
        yield made(name, depth="auto", quality=asked, models=[spec.model])
