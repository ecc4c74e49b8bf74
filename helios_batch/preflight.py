"""What a job will come to, found out without running it or writing anything."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helios_batch.data.reader import RowReader
from helios_batch.engine.memory import StepShape, plan_memory
from helios_batch.errors import ResourceError
from helios_batch.job import Job
from helios_batch.records import ErrorCode, Prompt, RowError

if TYPE_CHECKING:
    from helios_batch.models.tokenizer import Tokenizer

_SAMPLED_ROWS = 256


@dataclass(frozen=True)
class MemoryAtDepth:
    """The memory plan at one depth, in bytes; a batch size of 0 means that it does not fit."""

    depth: int
    weights: int
    activations: int
    kv_per_sequence: int
    batch_size: int


@dataclass(frozen=True)
class Preflight:
    """Rows, shards, tokens of a sample of prompts, and memory by depth.

    `prompt_tokens` holds the 50th, 90th and 100th percentile of the sampled prompts;
    `sample_errors` counts those that will fail, by code.
    """

    rows: int
    files: int
    shards: int
    fingerprint: str
    model: str
    depth: int
    device: str
    dtype: str
    memory_budget: int
    sampled_rows: int
    prompt_tokens: tuple[int, int, int]
    sample_errors: dict[str, int]
    max_new_tokens: int
    sequence_tokens: int
    memory: tuple[MemoryAtDepth, ...]


def preflight(job: Job) -> Preflight:
    """Look at a job's input, prompts and memory.

    Prompts are rendered and tokenized for rows spread evenly over the input. Memory is planned for
    sequences of the longest of them with all its new tokens.

    Raises:
        UsageError: as running the job would before its first row.
    """
    from helios_batch.engine.device import resolve  # noqa: PLC0415 - torch takes a second
    from helios_batch.models.tokenizer import Tokenizer  # noqa: PLC0415

    job.output.check(job.fingerprint, job.identity)
    resources = resolve(job.spec.resources)
    config, shape = job.model.config, StepShape(max_batch=resources.max_batch)
    lengths, errors, sampled = _sample(job, Tokenizer(job.model.path))
    longest = max(lengths, default=0)
    sequence = min(max(longest, 1) + job.spec.sampling.max_tokens, config.context_length)
    itemsize = resources.dtype.itemsize
    # the same check, with the same message, as before the first row of a run
    plan_memory(config, job.depth, itemsize, resources.memory, shape, job.sequence_tokens)

    def at_depth(depth: int) -> MemoryAtDepth:
        roomy = plan_memory(config, depth, itemsize, 1 << 62, shape, sequence)
        try:
            plan = plan_memory(config, depth, itemsize, resources.memory, shape, sequence)
            batch = plan.batch_size
        except ResourceError:
            batch = 0
        per_sequence = roomy.kv_per_token * sequence
        return MemoryAtDepth(depth, roomy.weights, roomy.activations, per_sequence, batch)

    layers = config.num_layers
    depths = sorted({job.depth, layers, *(max(1, layers * k // 6) for k in range(1, 6))})
    return Preflight(
        rows=job.table.rows,
        files=len(job.table.files),
        shards=len(job.shards),
        fingerprint=job.fingerprint,
        model=job.model.name,
        depth=job.depth,
        device=str(resources.device),
        dtype=str(resources.dtype).removeprefix("torch."),
        memory_budget=resources.memory,
        sampled_rows=sampled,
        prompt_tokens=(_percentile(lengths, 50), _percentile(lengths, 90), longest),
        sample_errors=dict(errors),
        max_new_tokens=job.spec.sampling.max_tokens,
        sequence_tokens=sequence,
        memory=tuple(at_depth(depth) for depth in depths),
    )


def _sample(job: Job, tokenizer: Tokenizer) -> tuple[list[int], Counter[str], int]:
    """Return prompt lengths in tokens, errors by code, and how many rows were looked at."""
    reader = RowReader(job.table, job.renderer.columns)
    step = max(1, job.table.rows // _SAMPLED_ROWS)
    rows = range(0, job.table.rows, step)
    rendered = [job.renderer.render(reader.read(row, row + 1), row)[0] for row in rows]
    prompts = [item for item in rendered if isinstance(item, Prompt)]
    encoded = tokenizer.encode([prompt.content for prompt in prompts])
    lengths = [len(item) for item in encoded if not isinstance(item, RowError)]
    failed = [item for item in [*rendered, *encoded] if isinstance(item, RowError)]
    errors = Counter(error.code.value for error in failed)
    context = job.model.config.context_length
    too_long = sum(length >= context for length in lengths)
    if too_long:
        errors[ErrorCode.PROMPT_TOO_LONG.value] = too_long
    return [length for length in lengths if length < context], errors, len(rows)


def _percentile(values: list[int], percent: int) -> int:
    if not values:
        return 0
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]
