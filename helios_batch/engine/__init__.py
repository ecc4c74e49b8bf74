"""Continuous batching over a preallocated KV cache at a fixed exit depth."""
