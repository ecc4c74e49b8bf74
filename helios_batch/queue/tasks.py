"""The one Celery task: hand the unit to this process's executor, and answer the message."""

from __future__ import annotations

import logging
import os

import redis
from celery import shared_task
from celery.exceptions import Reject
from celery.signals import worker_process_init

from helios_batch.queue.executor import EngineLostError
from helios_batch.queue.messages import RUN_UNIT, valid_unit
from helios_batch.queue.process import executor

_log = logging.getLogger(__name__)
_LOST = 70


@worker_process_init.connect  # type: ignore[untyped-decorator]  # Celery has no types
def _set_up(**_: object) -> None:
    executor()


@shared_task(name=RUN_UNIT, max_retries=3)  # type: ignore[untyped-decorator]  # the same
def run_unit(job_id: str, unit: str) -> str:
    """Run a unit; its message is acknowledged by returning.

    Raises:
        Reject: the unit was handed back, and another worker is to have the message.
    """
    if not valid_unit(job_id, unit):
        raise Reject("not a unit of ours", requeue=False)
    try:
        outcome = executor().execute(job_id, unit)
    except redis.RedisError as exc:
        # the reconciler sends it again when Redis is back
        _log.warning("job %s, unit %s: Redis failed: %s", job_id, unit, exc)
        return "unconfirmed"
    except EngineLostError:
        _log.exception("job %s, unit %s: the engine is lost; this process ends", job_id, unit)
        logging.shutdown()
        os._exit(_LOST)
    if outcome == "handed_back":
        raise Reject("the worker is stopping", requeue=True)
    return outcome
