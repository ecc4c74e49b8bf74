"""The one engine of a worker's process, kept warm between shards and jobs of the same model."""

from __future__ import annotations

from dataclasses import dataclass

from helios_batch.job import Job
from helios_batch.policy_file import calibration_mark
from helios_batch.records import Generator
from helios_batch.spec import ResourceSpec
from helios_batch.supervision import Supervisor


@dataclass(frozen=True)
class Overrides:
    """What the worker's own options put in place of a spec's resources; None leaves them."""

    device: str | None = None
    memory: int | None = None
    threads: int | None = None

    def apply(self, spec: ResourceSpec) -> ResourceSpec:
        """Return the resources that a job gets on this worker."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        return spec.model_copy(update=given)


class WarmEngine:
    """Holds the last engine; another model, depth, dtype or budget loads another in its place.

    `loads` counts how often that happened.
    """

    def __init__(self) -> None:
        self._fits: set[tuple[object, ...]] = set()
        self._job_id = ""
        self._engine: Generator | None = None
        self.loads = 0

    def serve(self, job_id: str, job: Job, supervisor: Supervisor) -> Generator:
        """Return an engine that is ready for the job's prompts.

        `supervisor` watches over the job's calibration, if it comes to that.

        Raises:
            UsageError: the model can't be loaded here.
        """
        resources = job.spec.resources
        if self._engine is None or (*_asked(job_id, job), resources) not in self._fits:
            self._engine = None  # the old weights go before the new ones come
            self._engine = load_engine(job, supervisor)
            exact = resources.model_copy(update={"dtype": self._engine.facts.dtype})
            asked = _asked(job_id, job)  # its policy may be made only now
            self._fits = {(*asked, resources), (*asked, exact)}
            self.loads += 1
        elif job_id != self._job_id:
            adopt_engine(self._engine, job)
        self._job_id = job_id
        return self._engine

    def drop(self) -> None:
        """Let the engine go, as it is not what it should be; the next one is loaded anew."""
        self._engine = None


def _asked(job_id: str, job: Job) -> tuple[object, ...]:
    """Return what an engine has to fit, beside the resources.

    A policy is one job's own, and the one that its output folder holds: should that folder be
    taken away, its rows follow whichever is the first there again.
    """
    auto = job.spec.depth == "auto" and job.early_exits is None
    decided = (job_id, calibration_mark(job.output)) if auto else None
    exits = job.early_exits or {job.depth: job.exit_file}
    digests = tuple((depth, found.digest if found else "") for depth, found in exits.items())
    confidence, policy = job.spec.exits.confidence, job.spec.policy
    return job.model.digest, job.depth, digests, confidence, policy, decided


def load_engine(job: Job, supervisor: Supervisor) -> Generator:
    """Load the engine that a job asks for."""
    from helios_batch.loading import load_engine as load

    return load(job, supervisor)


def adopt_engine(engine: Generator, job: Job) -> None:
    """Prepare a loaded engine for another job of its model."""
    from helios_batch.engine.early_exit import EarlyExitEngine
    from helios_batch.engine.engine import Engine
    from helios_batch.loading import adopt

    if isinstance(engine, Engine | EarlyExitEngine):
        adopt(engine, job)
