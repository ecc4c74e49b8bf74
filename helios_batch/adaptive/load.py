"""The adaptive engine that a job asks for."""

from __future__ import annotations

from helios_batch.adaptive.engine import AdaptiveEngine
from helios_batch.adaptive.remember import remember
from helios_batch.adaptive.sizes import sizes
from helios_batch.adaptive.table_file import TableFile
from helios_batch.candidates import candidates
from helios_batch.contenders import contenders_of, fitting
from helios_batch.engine.device import Resources, hardware_of, resolve
from helios_batch.engine.sole import SoleEngine
from helios_batch.helios.controller import Controller
from helios_batch.helios.history import History
from helios_batch.helios.shortlist import shortlist
from helios_batch.job import Job
from helios_batch.models.repository.files import load_repository
from helios_batch.spec_policy import PolicySpec


def load_adaptive(job: Job, policy: PolicySpec) -> AdaptiveEngine:
    """Return an engine that chooses among the job's candidates; nothing is loaded yet.

    Raises:
        ModelError: a tokenizer can't be read, or chat is asked of a model without it.
        SpecError: a choice begins another one, as a model's tokenizer cuts them.
        ResourceError: memory holds no candidate.
    """
    resources = resolve(job.spec.resources)
    contenders = contenders_of(job)
    history = History({name: sizes(found, resources) for name, found in contenders.items()})
    chosen = _shortlisted(job, policy, resources, fitting(contenders, resources))
    history.models = {name: history.models[name] for name in chosen}
    dtype = str(resources.dtype).removeprefix("torch.")
    table = _table(job, resources)
    controller = Controller(policy, job.spec.objective, history)
    if table.recall(history):
        controller.skip_profile()
    sole = SoleEngine({name: contenders[name] for name in chosen}, resources, states=True)

    def save() -> None:
        table.save(history)
        for name, contender in sole.contenders.items():
            found = history.models[name]
            remember(contender, found, job.spec.name, hardware_of(resources), dtype)

    return AdaptiveEngine(sole, controller, policy, job.table.rows, save)


def forget(job: Job) -> None:
    """Have a job's next engine profile anew, whatever this machine has kept."""
    _table(job, resolve(job.spec.resources)).forget()


def _table(job: Job, resources: Resources) -> TableFile:
    dtype = str(resources.dtype).removeprefix("torch.")
    return TableFile(job, hardware_of(resources), dtype)


def _shortlisted(
    job: Job, policy: PolicySpec, resources: Resources, held: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the best candidates by what the model repository knows of them."""
    names = [candidate.model.name for candidate in job.candidates]
    dtype = str(resources.dtype).removeprefix("torch.")
    known = candidates(
        *(load_repository(), names, held.__contains__),
        tasks=(job.spec.name, job.spec.task.type),
        hardware=hardware_of(resources),
        dtype=dtype,
    )
    return tuple(c.name for c in shortlist(known, job.spec.objective, policy.shortlist))
