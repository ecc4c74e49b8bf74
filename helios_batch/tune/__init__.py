"""`models tune`: exits for a model, made on a job's own prompts."""
