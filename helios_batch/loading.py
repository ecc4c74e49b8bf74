"""The engine that a job asks for."""

from __future__ import annotations

from helios_batch.calibration import calibrated
from helios_batch.engine.device import resolve
from helios_batch.engine.engine import Engine
from helios_batch.job import Job
from helios_batch.models.tokenizer import Tokenizer
from helios_batch.preflight import sample_prompts
from helios_batch.staged import StagedEngine


def load_engine(job: Job) -> Engine | StagedEngine:
    """Load model and tokenizer, with memory for the prompts that a sample of the input shows.

    With `depth: auto`, the job is calibrated first, unless its output folder says that it was.

    Raises:
        ModelError: weights or tokenizer can't be read, or chat is asked of a model without it.
        SpecError: a choice begins another one, as the model's tokenizer cuts them.
        ResourceError: the device is not there, or memory is too small.
    """
    tokenizer = Tokenizer(job.model.path, job.created)
    tokens = sample_prompts(job, tokenizer).sequence_tokens
    engine = Engine(
        job.model,
        tokenizer,
        job.depth,
        resolve(job.spec.resources),
        tokens,
        job.exit_file,
        job.spec.exits.confidence,
    )
    return staged(engine, job)


def staged(engine: Engine, job: Job) -> Engine | StagedEngine:
    """Put an engine under its job's policy, if the job has one."""
    quality = job.spec.quality
    if quality is None:
        return engine
    found = calibrated(job, engine, quality)
    answers = {answer.row: answer for answer in found.answers}
    return StagedEngine(
        engine, job.exits, found.policy, job.spec.metric, quality.audit_fraction, answers
    )


def adopt(engine: Engine, job: Job) -> None:
    """Prepare an engine that already holds the job's model at its depth.

    Raises:
        ModelError: the tokenizer can't be read, or chat is asked of a model without it.
        SpecError: a choice begins another one, as the model's tokenizer cuts them.
        ResourceError: memory is too small for the job's prompts.
    """
    tokenizer = Tokenizer(job.model.path, job.created)
    engine.adopt(tokenizer, sample_prompts(job, tokenizer).sequence_tokens)
