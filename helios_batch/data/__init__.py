"""Parquet in and out: reading, sharding, prompts, schema, commit."""
