"""Policies side by side: the same rows, the same memory budget, one run."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from helios_batch.adaptive.load import forget
from helios_batch.bench.variants import variants
from helios_batch.data.reader import RowReader
from helios_batch.engine.engine import Engine
from helios_batch.helios.agreement import agreement
from helios_batch.job import Job, prepare
from helios_batch.loading import load_engine
from helios_batch.records import EngineFacts, EngineStats, Generation, Generator, Prompt
from helios_batch.spec import JobSpec
from helios_batch.spec_quality import Metric
from helios_batch.staged import StagedEngine


@dataclass(frozen=True)
class PolicyFigures:
    """What a policy came to on some rows, the median of the rounds.

    Args:
        name: of the variant.
        seconds: for all rows that `before` has not answered.
        before: seconds of loading and calibration, once in a job's life; the rows that were
            calibrated on have their answers by it.
        rows_per_second: of rows that ran in `seconds`; `tokens_per_second` likewise.
        batch: the largest, and `batch_limit` what memory would hold.
        memory: bytes of the weights and of the KV cache of as many sequences, of the longest's
            length, as full depth had in its largest batch; of the places, the one that takes most.
        earliest: share of tokens that left at the first exit of their model.
        full: share of tokens that ran through all layers.
        agreement: with full depth of the first model, by the job's metric, or by
            tokens if that is perplexity.
        perplexity: of the texts under that model, as a ratio to its own; None for labels.
        moves: changes of place by kind.
        profile: seconds of profiling within `seconds`.
    """

    name: str
    seconds: float
    before: float
    rows_per_second: float
    tokens_per_second: float
    batch: int
    batch_limit: int
    memory: int
    earliest: float
    full: float
    agreement: float
    perplexity: float | None
    moves: dict[str, int]
    profile: float


@dataclass(frozen=True)
class _Run:
    answers: list[Generation]
    ran: set[int]
    seconds: float
    before: float
    stats: EngineStats
    engines: list[EngineFacts]


def bench_policies(
    spec: JobSpec,
    folder: Path,
    rows: int,
    rounds: int,
    bounds: Sequence[float],
    only: Sequence[str],
    report: Callable[[str], None],
) -> list[PolicyFigures]:
    """Run a job's first rows under each policy, in turn and in several rounds.

    Args:
        spec: the job.
        folder: an empty folder for the variants' output folders.
        rows: how many rows run.
        rounds: how often each policy runs.
        bounds: promises to keep besides; see `variants`.
        only: beginnings of the names of the policies to run beside the first; all if empty.
        report: called with a line as each run ends.

    Raises:
        UsageError: the job can't be run.
    """
    runs: dict[str, list[_Run]] = {}
    depths: dict[str, tuple[int, ...]] = {}
    jobs: dict[str, Job] = {}
    for turn in range(rounds):
        for place, variant in enumerate(variants(spec, folder / str(turn), bounds)):
            if place and only and not variant.name.startswith(tuple(only)):
                continue
            job = prepare(variant.spec)
            prompts = _prompts(job, rows)
            found = _run(job, prompts)
            runs.setdefault(variant.name, []).append(found)
            jobs[variant.name] = job
            depths |= {c.model.name: c.depths for c in job.candidates}
            rate = len(found.ran) / found.seconds
            report(f"round {turn + 1}: {variant.name}: {rate:.2f} rows/s")
    first = next(iter(runs))
    whole = runs[first][-1]
    metric = spec.metric if spec.metric != "perplexity" else "token"
    ratios = _perplexities(jobs[first], rows, {n: found[0].answers for n, found in runs.items()})
    return [
        _figures(name, found, whole, metric, depths, ratios.get(name))
        for name, found in runs.items()
    ]


def _prompts(job: Job, rows: int) -> list[Prompt]:
    reader = RowReader(job.table, job.renderer.columns)
    count = min(rows, job.table.rows)
    rendered = job.renderer.render(reader.read(0, count), 0)
    return [item for item in rendered if isinstance(item, Prompt)]


def _run(job: Job, prompts: list[Prompt]) -> _Run:
    if job.spec.policy is not None and job.spec.policy.chooses:
        forget(job)  # each run pays for its own profile
    started = time.perf_counter()
    engine = load_engine(job)
    before = time.perf_counter() - started
    per_call, stats = job.spec.output.rows_per_shard, EngineStats()
    answers: list[Generation] = []
    started = time.perf_counter()
    for begin in range(0, len(prompts), per_call):
        answers += _answer(job, engine, prompts[begin : begin + per_call])
        stats += engine.stats
    seconds = time.perf_counter() - started
    known = engine.answers if isinstance(engine, StagedEngine) else {}
    ran = {prompt.row for prompt in prompts} - set(known)
    return _Run(answers, ran, seconds, before, stats, stats.engines or [engine.facts])


def _answer(job: Job, engine: Generator, prompts: list[Prompt]) -> list[Generation]:
    if job.spec.task.type == "label":
        return engine.label(prompts, job.spec.task.choices)
    return engine.generate(prompts, job.spec.sampling)


def _perplexities(job: Job, rows: int, answers: dict[str, list[Generation]]) -> dict[str, float]:
    """Return the ratio of each variant's perplexity, under a job's model, to that job's own."""
    if job.spec.task.type == "label":
        return {}
    engine = load_engine(job)
    assert isinstance(engine, Engine), "vanilla runs on the plain engine"
    prompts = _prompts(job, rows)
    found = {}
    for name, given in answers.items():
        pairs = [
            (prompt, row.token_ids)
            for prompt, row in zip(prompts, given, strict=True)
            if row.token_ids and max(row.token_ids) < job.model.config.vocab_size
        ]
        scores = engine.score([p for p, _ in pairs], [tokens for _, tokens in pairs])
        found[name] = -statistics.fmean(scores)
    own = next(iter(found.values()))
    return {name: math.exp(value - own) for name, value in found.items()}


def _figures(
    name: str,
    runs: list[_Run],
    whole: _Run,
    metric: Metric,
    depths: dict[str, tuple[int, ...]],
    perplexity: float | None,
) -> PolicyFigures:
    seconds = statistics.median(run.seconds for run in runs)
    last = runs[-1]
    exits = [row.exit for row in last.answers if row.exit is not None]
    tokens = [(exit_.model, layer) for exit_ in exits for layer in exit_.token_layers]
    count = max(1, len(tokens))
    longest = max(row.prompt_tokens + row.completion_tokens for row in last.answers)
    agreed = [
        agreement(*pair, metric, {}) for pair in zip(last.answers, whole.answers, strict=True)
    ]
    return PolicyFigures(
        name=name,
        seconds=seconds,
        before=statistics.median(run.before for run in runs),
        rows_per_second=len(last.ran) / seconds,
        tokens_per_second=sum(row.completion_tokens for row in last.answers if row.row in last.ran)
        / seconds,
        batch=last.stats.largest_batch,
        batch_limit=max(facts.batch_limit for facts in last.engines),
        memory=max(
            facts.weight_bytes + whole.stats.largest_batch * longest * facts.kv_bytes_per_token
            for facts in last.engines
        ),
        earliest=sum(layer == depths[model][0] for model, layer in tokens) / count,
        full=sum(layer == depths[model][-1] for model, layer in tokens) / count,
        agreement=statistics.fmean(agreed),
        perplexity=perplexity,
        moves=dict(last.stats.moves),
        profile=statistics.median(run.stats.profile_seconds for run in runs),
    )
