"""How well an exit labels: the job itself, run at the exit on held-out rows."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from helios_batch.job import Job, prepare
from helios_batch.loading import load_engine
from helios_batch.local import Observer, run_local
from helios_batch.models.exits.metadata import ExitMetadata, Measured
from helios_batch.models.tuning.measure import (
    TEMPERATURES,
    Judged,
    fit_temperature,
    summarize,
)
from helios_batch.spec import ExitSpec, JobSpec, OutputSpec
from helios_batch.tune.result import LabelMeasure
from helios_batch.tune.sample import Sampled


def measure_labels(
    sampled: Sequence[Sampled], metadata: ExitMetadata, exit_path: Path, observer: Observer
) -> tuple[ExitMetadata, LabelMeasure]:
    """Run the held-out rows at the exit; return the metadata with what was found, and the figures.

    The temperature of the choices is fitted on all held-out rows; the calibration error is measured
    on each half of them at the temperature of the other.
    """
    full: list[dict[str, Any]] = []
    shallow: list[dict[str, Any]] = []
    seconds = {"full": 0.0, "shallow": 0.0}
    for source in sampled:
        output = Path(f"{source.held_out.output.path}-exit-{metadata.depth}")
        shutil.rmtree(output, ignore_errors=True)
        spec = _at_exit(source.held_out, metadata.depth, exit_path.parent, output)
        pairs = [(prepare(source.held_out), full, "full"), (prepare(spec), shallow, "shallow")]
        for job, rows, name in pairs:
            result = run_local(job, load_engine, observer)
            seconds[name] += result.totals.seconds.get("prefill", 0.0)
            rows.extend(_rows(job))
        shutil.rmtree(output, ignore_errors=True)
    labeled = [
        (row, other)
        for row, other in zip(full, shallow, strict=True)
        if row["label"] is not None and other["label"] is not None
    ]
    judged = judge_labels(labeled)
    folds = [slice(0, None, 2), slice(1, None, 2)]
    crossed = [
        summarize(_part(judged, rows), fit_temperature(_part(judged, others)))
        for rows, others in (folds, folds[::-1])
    ]
    temperature = fit_temperature(judged)
    found = summarize(judged, temperature)
    ece = sum(part.ece * part.tokens for part in crossed) / len(labeled)
    measured: dict[str, Measured] = metadata.measured | {"labels": replace(found, ece=ece)}
    labels = [row["label"] for row, _ in labeled]
    confidence = [max(row["label_probability"].values()) for row, _ in labeled]
    return (
        replace(metadata, choice_temperature=temperature, measured=measured),
        LabelMeasure(
            rows=len(labeled),
            agreement=found.agreement,
            kappa=cohens_kappa([(row["label"], other["label"]) for row, other in labeled]),
            ece=ece,
            decisive=sum(confidence) / len(confidence),
            largest_class=max(Counter(labels).values()) / len(labels),
            cost=seconds["shallow"] / seconds["full"] if seconds["full"] else math.nan,
        ),
    )


def judge_labels(labeled: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> Judged:
    """Return whether labels agree, and the exit's confidence at each candidate temperature."""
    agrees = torch.tensor([full["label"] == shallow["label"] for full, shallow in labeled])
    chances = torch.tensor([list(row["label_probability"].values()) for _, row in labeled])
    scores = chances.double().clamp_min(1e-12).log()
    sure = [(scores / t).softmax(-1).amax(-1) for t in TEMPERATURES]
    return Judged(agrees, torch.stack(sure, dim=-1))


def cohens_kappa(pairs: Sequence[tuple[str, str]]) -> float:
    """Return Cohen's kappa of two labelings; 1 if both say one and the same label throughout."""
    total = len(pairs)
    observed = sum(a == b for a, b in pairs) / total
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    expected = sum(first[label] * second[label] for label in first) / total**2
    return 1.0 if expected == 1 else (observed - expected) / (1 - expected)


def _part(judged: Judged, rows: slice) -> Judged:
    return Judged(judged.agrees[rows], judged.confidence[rows])


def _at_exit(spec: JobSpec, depth: int, exits: Path, output: Path) -> JobSpec:
    return spec.model_copy(
        update={
            "depth": depth,
            "exits": ExitSpec(path=str(exits)),
            "output": OutputSpec(path=str(output), rows_per_shard=spec.output.rows_per_shard),
        }
    )


def _rows(job: Job) -> list[dict[str, Any]]:
    parts = [job.output.path / job.shards[i].part_name for i in range(len(job.shards))]
    columns = ["label", "label_probability"]
    return [row for part in parts for row in pq.read_table(part, columns=columns).to_pylist()]
