"""Progress while a job runs and the summary after it."""
