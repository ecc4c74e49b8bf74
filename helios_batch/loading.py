"""The engine that a job asks for."""

from __future__ import annotations

from collections.abc import Mapping

from helios_batch.adaptive.load import load_adaptive
from helios_batch.calibration import calibrated
from helios_batch.contenders import contenders_of
from helios_batch.engine.device import resolve
from helios_batch.engine.early_exit import EarlyExitEngine
from helios_batch.engine.engine import Engine
from helios_batch.engine.sole import SoleEngine
from helios_batch.errors import OutputError
from helios_batch.job import Job
from helios_batch.models.exits.file import ExitFile
from helios_batch.models.tokenizer import Tokenizer
from helios_batch.policy_file import Calibration, read_calibration
from helios_batch.preflight import sample_prompts
from helios_batch.promise import FolderPromise
from helios_batch.records import Generator
from helios_batch.spec import ResourceSpec
from helios_batch.staged import StagedEngine
from helios_batch.supervision import ALONE, Supervisor


def load_engine(job: Job, supervisor: Supervisor = ALONE) -> Generator:
    """Load model and tokenizer, with memory for the prompts that a sample of the input shows.

    With `depth: auto`, the job is calibrated first, unless its output folder says that it was;
    `supervisor` watches over it.

    Raises:
        ModelError: weights or tokenizer can't be read, or chat is asked of a model without it.
        SpecError: a choice begins another one, as the model's tokenizer cuts them.
        ResourceError: the device is not there, or memory is too small.
        OutputError: the job's policy is unreadable, or was made in another dtype than is asked for.
    """
    quality, policy = job.spec.quality, job.spec.policy
    if (exits := job.early_exits) is not None:
        return _load_early_exit(job, exits)
    if policy is not None and policy.chooses:
        return load_adaptive(job, policy)
    if quality is None:
        return _load(job, job.spec.resources)
    known = read_calibration(job.output, job.fingerprint)
    sole = _sole(job, _in_dtype(job, known))
    found = known or calibrated(job, sole, quality, supervisor)
    if found.dtype != sole.current.facts.dtype:
        # another engine was first, in its own type
        wanted = _in_dtype(job, found)
        del sole
        sole = _sole(job, wanted)
    answers = {answer.row: answer for answer in found.answers}
    promise = FolderPromise(job, quality.bound)
    return StagedEngine(sole, found.policy, quality.audit_fraction, answers, promise)


def _in_dtype(job: Job, found: Calibration | None) -> ResourceSpec:
    """Return the job's resources in the type that it was calibrated in."""
    resources = job.spec.resources
    if found is None or found.dtype == resources.dtype:
        return resources
    if resources.dtype != "auto":
        raise OutputError(
            f"the job was calibrated in {found.dtype}; this run would use {resources.dtype}",
            where=str(job.output.path),
            fix=f"set resources.dtype to {found.dtype}, or choose a new output folder",
        )
    return ResourceSpec.model_validate(resources.model_dump() | {"dtype": found.dtype})


def _sole(job: Job, resources: ResourceSpec) -> SoleEngine:
    """Return the engine at full depth of the job's first model."""
    sole = SoleEngine(contenders_of(job), resolve(resources))
    sole.at(*job.stages[-1])
    return sole


def _load(job: Job, resources: ResourceSpec) -> Engine:
    tokenizer = Tokenizer(job.model.path, job.created)
    tokens = sample_prompts(job, tokenizer).sequence_tokens
    return Engine(
        job.model,
        tokenizer,
        job.depth,
        resolve(resources),
        tokens,
        job.exit_file,
        job.spec.exits.confidence,
    )


def _load_early_exit(job: Job, exits: Mapping[int, ExitFile | None]) -> EarlyExitEngine:
    assert job.spec.policy is not None, "only its policy gives a job early exits"
    tokenizer = Tokenizer(job.model.path, job.created)
    tokens = sample_prompts(job, tokenizer).sequence_tokens
    return EarlyExitEngine(
        job.model,
        tokenizer,
        exits,
        job.spec.policy.threshold,
        resolve(job.spec.resources),
        tokens,
        job.spec.exits.confidence,
    )


def adopt(engine: Engine | EarlyExitEngine, job: Job) -> None:
    """Prepare an engine that already holds the job's model at its depth, or with its exits.

    Raises:
        ModelError: the tokenizer can't be read, or chat is asked of a model without it.
        SpecError: a choice begins another one, as the model's tokenizer cuts them.
        ResourceError: memory is too small for the job's prompts.
    """
    tokenizer = Tokenizer(job.model.path, job.created)
    engine.adopt(tokenizer, sample_prompts(job, tokenizer).sequence_tokens)
