"""A job's candidates, ready to run."""

from __future__ import annotations

from helios_batch.engine.contender import Contender
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
