"""One shard, start to end: the one path that local runs and queue workers share."""

from __future__ import annotations

import time
from collections.abc import Callable, Container
from dataclasses import dataclass

import pyarrow as pa

from helios_batch.data.output import OutputFolder
from helios_batch.data.prompts import PromptRenderer
from helios_batch.data.reader import RowReader
from helios_batch.data.schema import part_table
from helios_batch.data.shards import Shard
from helios_batch.data.source import InputTable
from helios_batch.records import ErrorCode, Generation, Generator, Progress, Prompt, RowError
from helios_batch.spec import SamplingSpec, TaskSpec
from helios_batch.totals import Totals

_QUARANTINED = RowError(
    ErrorCode.QUARANTINED,
    "the process that ran this row was lost each time, alone and with others; look at its prompt, "
    "and at the memory of the worker",
)


@dataclass(frozen=True)
class ShardContext:
    """What all shards of a job have in common."""

    table: InputTable
    reader: RowReader
    renderer: PromptRenderer
    schema: pa.Schema
    task: TaskSpec
    sampling: SamplingSpec
    output: OutputFolder
    fingerprint: str


@dataclass(frozen=True)
class ShardResult:
    """A shard's totals, and whether this attempt's part is the one that was published."""

    totals: Totals
    published: bool


def run_shard(
    shard: Shard,
    context: ShardContext,
    engine: Generator,
    on_step: Callable[[Progress], None] | None = None,
    quarantined: Container[int] = (),
) -> ShardResult:
    """Read a shard's rows, generate or label, and publish its part.

    Rows whose number in the shard is in `quarantined` are not run; they get an error.

    On failure or interruption nothing is published and the shard can be run again; a second
    attempt at a published shard changes nothing.

    Raises:
        ReadError: the input can't be read.
        WriteError: the part can't be written.
        CommitRefused: another attempt has the shard, or its job was stopped.
    """
    started = time.perf_counter()
    rows = context.reader.read(shard.start, shard.stop)
    rendered = [
        _QUARANTINED if index in quarantined else item
        for index, item in enumerate(context.renderer.render(rows, shard.start))
    ]
    read_seconds = time.perf_counter() - started

    prompts = [item for item in rendered if isinstance(item, Prompt)]
    generated = iter(_answer(prompts, context, engine, on_step))
    generations = [
        Generation.failed(shard.start + i, item) if isinstance(item, RowError) else next(generated)
        for i, item in enumerate(rendered)
    ]

    totals = Totals.of(generations)
    totals.largest_batch = engine.stats.largest_batch
    totals.decode_steps = engine.stats.decode_steps
    totals.decode_tokens = engine.stats.decode_tokens
    totals.engines = engine.stats.engines or [engine.facts]
    totals.moves = engine.stats.moves
    totals.longest_stall = engine.stats.longest_stall
    totals.expected_stall = engine.stats.expected_stall
    totals.audit_losses = engine.stats.audit_losses
    started = time.perf_counter()
    ids = context.table.ids(shard.start, shard.stop)
    part = part_table(context.schema, rows, ids, generations)
    totals.seconds = {
        "read": read_seconds,
        "prefill": engine.stats.prefill_seconds,
        "decode": engine.stats.decode_seconds,
        "write": time.perf_counter() - started,
    }
    if engine.stats.load_seconds:
        totals.seconds["load"] = engine.stats.load_seconds
    if engine.stats.profile_seconds:
        totals.seconds["profile"] = engine.stats.profile_seconds
    published = context.output.publish_part(shard, part, context.fingerprint, totals.to_json())
    return ShardResult(totals, published)


def probe_rows(
    shard: Shard,
    probe: range,
    context: ShardContext,
    engine: Generator,
    on_step: Callable[[Progress], None] | None = None,
    quarantined: Container[int] = (),
) -> None:
    """Run some rows of a shard, numbered from its start, and drop what comes out.

    All there is to learn is whether the process survives it.
    """
    first = shard.start + probe.start
    rendered = context.renderer.render(context.reader.read(first, first + len(probe)), first)
    prompts = [
        item
        for index, item in zip(probe, rendered, strict=True)
        if isinstance(item, Prompt) and index not in quarantined
    ]
    _answer(prompts, context, engine, on_step)


def _answer(
    prompts: list[Prompt],
    context: ShardContext,
    engine: Generator,
    on_step: Callable[[Progress], None] | None,
) -> list[Generation]:
    """Have the engine do the job's task."""
    if context.task.type == "label":
        return engine.label(prompts, context.task.choices, on_step)
    return engine.generate(prompts, context.sampling, on_step)
