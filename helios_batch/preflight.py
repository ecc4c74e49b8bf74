"""What a job will come to, found out without running it or writing anything."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helios_batch.data.reader import RowReader
from helios_batch.engine.memory import StepShape, plan_memory
from helios_batch.errors import ModelError, ResourceError
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
    exit: str
    device: str
    dtype: str
    memory_budget: int
    sampled_rows: int
    prompt_tokens: tuple[int, int, int]
    sample_errors: dict[str, int]
    max_new_tokens: int
    sequence_tokens: int
    memory: tuple[MemoryAtDepth, ...]


@dataclass(frozen=True)
class PromptSample:
    """Prompts of rows spread evenly over the input.

    `lengths` are tokens of those that can run; `errors` counts the others by code;
    `sequence_tokens` is the longest with all its new tokens.
    """

    rows: int
    lengths: list[int]
    errors: dict[str, int]
    sequence_tokens: int


def sample_prompts(job: Job, tokenizer: Tokenizer) -> PromptSample:
    """Render and tokenize a sample of the input's rows.

    Raises:
        ModelError: the job makes chats, and the model has no template for them.
    """
    if job.renderer.makes_chat and not tokenizer.has_chat_template:
        raise ModelError(
            f"model {job.model.name!r} has no chat template",
            where="prompt",
            fix="leave out prompt.system and prompt.messages and write the whole prompt as a "
            "template, or use an instruction-tuned model",
        )
    reader = RowReader(job.table, job.renderer.columns)
    rows = range(0, job.table.rows, max(1, job.table.rows // _SAMPLED_ROWS))
    rendered = [job.renderer.render(reader.read(row, row + 1), row)[0] for row in rows]
    prompts = [item for item in rendered if isinstance(item, Prompt)]
    encoded = tokenizer.encode([prompt.content for prompt in prompts])
    context = job.model.config.context_length
    lengths = [len(item) for item in encoded if not isinstance(item, RowError)]
    failed = [item for item in [*rendered, *encoded] if isinstance(item, RowError)]
    errors = Counter(error.code.value for error in failed)
    errors[ErrorCode.PROMPT_TOO_LONG.value] += sum(length >= context for length in lengths)
    fitting = [length for length in lengths if length < context]
    sequence = min(max(fitting, default=1) + job.spec.sampling.max_tokens, context)
    return PromptSample(len(rows), fitting, dict(+errors), sequence)


def preflight(job: Job) -> Preflight:
    """Look at a job's input, prompts, checkpoint and memory.

    Raises:
        UsageError: as running the job would before its first row.
    """
    from helios_batch.engine.device import resolve
    from helios_batch.models.checkpoint import Checkpoint
    from helios_batch.models.exits.file import exit_kind, exit_shape
    from helios_batch.models.tokenizer import Tokenizer

    job.output.check(job.fingerprint, job.identity)
    resources = resolve(job.spec.resources)
    config, shape = job.model.config, StepShape(max_batch=resources.max_batch)
    sample = sample_prompts(job, Tokenizer(job.model.path, job.created))
    Checkpoint(job.model.path).close()
    sequence, itemsize = sample.sequence_tokens, resources.dtype.itemsize
    # the same check, with the same message, as before the first row of a run
    extra = exit_shape(job.exit_file)
    plan_memory(config, job.depth, itemsize, resources.memory, shape, sequence, extra)

    def at_depth(depth: int) -> MemoryAtDepth:
        extra = exit_shape(job.exits.get(depth))
        roomy = plan_memory(config, depth, itemsize, 1 << 62, shape, sequence, extra)
        try:
            batch = plan_memory(
                config, depth, itemsize, resources.memory, shape, sequence, extra
            ).batch_size
        except ResourceError:
            batch = 0
        per_sequence = roomy.kv_per_token * sequence
        return MemoryAtDepth(depth, roomy.weights, roomy.activations, per_sequence, batch)

    sixths = (max(1, config.num_layers * k // 6) for k in range(1, 7))
    depths = sorted({job.depth, *job.exits, *sixths})
    lengths = sorted(sample.lengths) or [0]
    return Preflight(
        rows=job.table.rows,
        files=len(job.table.files),
        shards=len(job.shards),
        fingerprint=job.fingerprint,
        model=job.model.name,
        depth=job.depth,
        exit=exit_kind(job.model, job.depth, job.exit_file),
        device=str(resources.device),
        dtype=str(resources.dtype).removeprefix("torch."),
        memory_budget=resources.memory,
        sampled_rows=sample.rows,
        prompt_tokens=(lengths[len(lengths) // 2], lengths[len(lengths) * 9 // 10], lengths[-1]),
        sample_errors=sample.errors,
        max_new_tokens=job.spec.sampling.max_tokens,
        sequence_tokens=sequence,
        memory=tuple(at_depth(depth) for depth in depths),
    )
