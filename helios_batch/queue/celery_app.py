"""The application for Celery's own tools: `celery --app helios_batch.queue.celery_app flower`.

The queue is the one that `HELIOS_REDIS_URL` names.
"""

from __future__ import annotations

from helios_batch.errors import HeliosError
from helios_batch.queue.app import make_app
from helios_batch.queue.settings import QueueSettings

try:
    app = make_app(QueueSettings.from_env())
except HeliosError as exc:
    # celery would print a traceback around any other exception
    raise SystemExit(f"error: {exc}") from None
