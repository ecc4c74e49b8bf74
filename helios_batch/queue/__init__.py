"""Jobs through Redis: leases, dispatch, Celery workers that own one engine each, schedules."""
