"""What a job will come to, found out without running it or writing anything."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helios_batch.data.reader import RowReader
from helios_batch.engine.memory import StepShape, plan_memory
from helios_batch.errors import ModelError, ResourceError, SpecError
from helios_batch.helios.policy import too_small
from helios_batch.job import Job
from helios_batch.records import ErrorCode, Message, Prompt, RowError

if TYPE_CHECKING:
    from helios_batch.models.choices import EncodedChoices
    from helios_batch.models.folder import ModelFolder
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

    `contract` says what a job with `depth: auto` promises, or how its policy chooses.
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
    contract: str | None
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

    `lengths` are tokens of those that can run; `errors` counts the others by code; `new_tokens` is
    how many the longest completion has; `sequence_tokens` is the longest prompt with all its new
    tokens, or with all its choices.
    """

    rows: int
    lengths: list[int]
    errors: dict[str, int]
    new_tokens: int
    sequence_tokens: int


def sample_prompts(
    job: Job, tokenizer: Tokenizer, model: ModelFolder | None = None
) -> PromptSample:
    """Render a sample of the input's rows, and tokenize it for `model`, or the job's first one.

    Raises:
        ModelError: the job makes chats, and the model has no template for them.
        SpecError: a choice begins another one, as the model's tokenizer cuts them.
    """
    model = model or job.model
    if job.renderer.makes_chat and not tokenizer.has_chat_template:
        raise ModelError(
            f"model {model.name!r} has no chat template",
            where="prompt",
            fix="leave out prompt.system and prompt.messages and write the whole prompt as a "
            "template, or use an instruction-tuned model",
        )
    reader = RowReader(job.table, job.renderer.columns)
    rows = range(0, job.table.rows, max(1, job.table.rows // _SAMPLED_ROWS))
    rendered = [job.renderer.render(reader.read(row, row + 1), row)[0] for row in rows]
    prompts = [item for item in rendered if isinstance(item, Prompt)]
    contents = [prompt.content for prompt in prompts]
    errors = Counter(item.code.value for item in rendered if isinstance(item, RowError))
    if job.spec.task.type == "label":
        return _sample_labels(job, tokenizer, model, contents, len(rows), errors)
    encoded = tokenizer.encode(contents)
    context = model.config.context_length
    lengths = [len(item) for item in encoded if not isinstance(item, RowError)]
    errors.update(item.code.value for item in encoded if isinstance(item, RowError))
    errors[ErrorCode.PROMPT_TOO_LONG.value] += sum(length >= context for length in lengths)
    fitting = [length for length in lengths if length < context]
    new = job.spec.sampling.max_tokens
    sequence = min(max(fitting, default=1) + new, context)
    return PromptSample(len(rows), fitting, dict(+errors), new, sequence)


def _sample_labels(
    job: Job,
    tokenizer: Tokenizer,
    model: ModelFolder,
    contents: list[str | tuple[Message, ...]],
    rows: int,
    errors: Counter[str],
) -> PromptSample:
    """Tokenize sampled prompts with their choices; `errors` are those of rendering."""
    choices, context = job.spec.task.choices, model.config.context_length
    lengths, new, sequence = [], 1, len(choices)
    for item in tokenizer.encode_choices(contents, choices):
        if isinstance(item, RowError):
            errors[item.code.value] += 1
        elif item.longest > context:
            errors[ErrorCode.PROMPT_TOO_LONG.value] += 1
        else:
            _check_choices(item, choices)
            lengths.append(item.prompt_tokens)
            new = max(new, *map(len, item.choices))
            sequence = max(sequence, item.total)
    return PromptSample(rows, lengths, dict(errors), new, sequence)


def _check_choices(encoded: EncodedChoices, choices: tuple[str, ...]) -> None:
    shadowed = encoded.shadowed()
    if shadowed is not None:
        longer, shorter = (choices[index] for index in shadowed)
        raise SpecError(
            f"the tokens of choice {longer!r} begin with all those of {shorter!r}: it could never "
            "be the likelier one",
            where="task.choices",
            fix="word them so that none begins another, or end each with the same mark, such as a "
            "full stop or a line feed",
        )


def preflight(job: Job) -> Preflight:
    """Look at a job's input, prompts, checkpoint and memory.

    Raises:
        UsageError: as running the job would before its first row.
    """
    from helios_batch.contenders import contenders_of, fitting
    from helios_batch.engine.device import resolve
    from helios_batch.models.checkpoint import Checkpoint
    from helios_batch.models.exits.file import exit_kind, exit_shape, exits_shape
    from helios_batch.models.tokenizer import Tokenizer

    job.output.check(job.fingerprint, job.identity)
    resources = resolve(job.spec.resources)
    config, shape = job.model.config, StepShape(max_batch=resources.max_batch)
    sample = sample_prompts(job, Tokenizer(job.model.path, job.created))
    Checkpoint(job.model.path).close()
    sequence, itemsize = sample.sequence_tokens, resources.dtype.itemsize
    # the same check, with the same message, as before the first row of a run
    early = [found for found in (job.early_exits or {}).values() if found is not None]
    extra = exits_shape(early) if early else exit_shape(job.exit_file)
    contract, policy = _contract(job), job.spec.policy
    chooses = policy is not None and policy.chooses
    contenders = contenders_of(job) if chooses or len(job.candidates) > 1 else {}
    if not chooses:
        plan_memory(config, job.depth, itemsize, resources.memory, shape, sequence, extra)
    elif left_out := contenders.keys() - fitting(contenders, resources):
        contract = f"{contract}; resources.memory does not hold {' and '.join(sorted(left_out))}"

    def at_depth(depth: int) -> MemoryAtDepth:
        beside = extra if depth == job.depth else exit_shape(job.exits.get(depth))
        roomy = plan_memory(config, depth, itemsize, 1 << 62, shape, sequence, beside)
        try:
            batch = plan_memory(
                config, depth, itemsize, resources.memory, shape, sequence, beside
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
        exit="ee" if job.early_exits else exit_kind(job.model, job.depth, job.exit_file),
        contract=contract,
        device=str(resources.device),
        dtype=str(resources.dtype).removeprefix("torch."),
        memory_budget=resources.memory,
        sampled_rows=sample.rows,
        prompt_tokens=(lengths[len(lengths) // 2], lengths[len(lengths) * 9 // 10], lengths[-1]),
        sample_errors=sample.errors,
        max_new_tokens=sample.new_tokens,
        sequence_tokens=sequence,
        memory=tuple(at_depth(depth) for depth in depths),
    )


def _contract(job: Job) -> str | None:
    quality, policy = job.spec.quality, job.spec.policy
    if policy is not None and policy.chooses:
        places = "; ".join(
            f"{c.model.name} at {' or '.join(map(str, c.depths))} layers" for c in job.candidates
        )
        return (
            f"policy {policy.type} chooses by {job.spec.objective}: {places}. It reacts where more "
            f"than {policy.limit} of {policy.window} tokens are less than {policy.threshold:g} sure"
        )
    if quality is None:
        return None
    places = "; ".join(
        f"{c.model.name} at {' or '.join(map(str, c.depths))} layers" for c in job.candidates
    )
    if len(job.candidates) == 1:
        places = "depths " + ", ".join(map(str, job.stage_depths))
    promised = f"{quality.describe(job.spec.metric)}; chosen from {places}"
    if (decided := job.policy) is not None:
        return f"{promised}; already decided: {decided.reason}, depths {decided.depths}"
    if (reason := too_small(job.table.rows, quality)) is not None:
        return f"{promised}; full depth: {reason}"
    return promised
