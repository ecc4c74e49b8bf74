"""A job's candidates, ready to run."""

from __future__ import annotations

from collections.abc import Mapping

from helios_batch.engine.contender import Contender
from helios_batch.engine.device import Resources
from helios_batch.errors import ResourceError
from helios_batch.job import Job
from helios_batch.models.tokenizer import Tokenizer
from helios_batch.preflight import sample_prompts


def contenders_of(job: Job) -> dict[str, Contender]:
    """Return a job's models by name, in its order, each with the tokens of the longest sequence.

    Raises:
        ModelError: a tokenizer can't be read, or chat is asked of a model without it.
        SpecError: a choice begins another one, as a model's tokenizer cuts them.
    """
    found = {}
    for candidate in job.candidates:
        model = candidate.model
        tokenizer = Tokenizer(model.path, job.created)
        tokens = sample_prompts(job, tokenizer, model).sequence_tokens
        parts = (candidate.exits, candidate.depths, tokens, job.spec.exits.confidence)
        found[model.name] = Contender(model, tokenizer, *parts)
    return found


def fitting(contenders: Mapping[str, Contender], resources: Resources) -> tuple[str, ...]:
    """Return the names of those that memory holds at some depth, to be deepened where they can be.

    Raises:
        ResourceError: it holds none.
    """
    needed = {
        name: min(
            contender.needs(layers, resources, len(contender.depths) > 1)
            for layers in contender.depths
        )
        for name, contender in contenders.items()
    }
    found = tuple(name for name, least in needed.items() if least <= resources.memory)
    if not found:
        raise ResourceError(
            f"{resources.memory:,} bytes of memory hold no depth of {' and '.join(contenders)}",
            where="resources.memory",
            fix=f"give at least {-(-min(needed.values()) // 2**20)}MiB, or name a smaller model",
        )
    return found
