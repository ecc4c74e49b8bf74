"""The Celery application: messages are hints that a unit is due, and nothing more.

What the settings are for was measured on Celery 5.7 over Redis: late acknowledgement and rejection
on a lost worker make most messages come back; leases and the reconciler see to the others.
"""

from __future__ import annotations

from functools import cache

from celery import Celery

from helios_batch.queue.connection import SOCKET_TIMEOUT, broker_address, keepalive_options
from helios_batch.queue.keys import Keys
from helios_batch.queue.messages import RUN_UNIT
from helios_batch.queue.settings import DEFAULT_QUEUE, QueueSettings

_VISIBILITY_SECONDS = 7 * 24 * 3600


def make_app(settings: QueueSettings) -> Celery:
    """Return an application on the queue's Redis; nothing is sent yet."""
    address = broker_address(settings)
    transport = {
        "unix_socket": address.unix_socket,
        "visibility_timeout": _VISIBILITY_SECONDS,
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        "global_keyprefix": Keys(settings.prefix).broker,
        "socket_timeout": SOCKET_TIMEOUT,
        "socket_connect_timeout": SOCKET_TIMEOUT,
        "socket_keepalive": True,
        "socket_keepalive_options": keepalive_options(),
        "health_check_interval": 15,
    }
    app = Celery("helios_batch", set_as_current=False)
    app.conf.update(
        broker_url=address.url,
        broker_use_ssl=address.ssl,
        broker_transport="helios_batch.queue.transport:Transport",
        broker_transport_options=transport,
        # the parts are the results: no backend, but the timeout is read in three places
        result_backend=None,
        result_backend_transport_options={"visibility_timeout": _VISIBILITY_SECONDS},
        visibility_timeout=_VISIBILITY_SECONDS,
        task_ignore_result=True,
        task_default_queue=DEFAULT_QUEUE,
        include=["helios_batch.queue.tasks"],
        worker_proc_alive_timeout=120.0,
        task_create_missing_queues=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        # its retry would carry an ETA of minutes; a rejected message comes back at once
        task_retry_on_worker_lost=False,
        task_track_started=True,
        task_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,
        worker_prefetch_multiplier=1,
        worker_concurrency=1,
        worker_pool_start_method="spawn",
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_soft_shutdown_timeout=settings.soft_shutdown,
        worker_enable_soft_shutdown_on_idle=False,
        # nobody but Flower reads them, which turns them on itself; those of a task cost a third of
        # what the worker's main process does for it
        worker_send_task_events=False,
        worker_hijack_root_logger=True,
        worker_redirect_stdouts=False,
    )
    return app


@cache
def sender(settings: QueueSettings) -> Celery:
    """Return this process's application for sending."""
    return make_app(settings)


def send_unit(settings: QueueSettings, job_id: str, unit: str, queue: str) -> None:
    """Send a hint that a unit is due."""
    app = sender(settings)
    app.send_task(RUN_UNIT, args=(job_id, unit), queue=queue, retry=False)
