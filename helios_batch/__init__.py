"""Offline batch inference over Parquet on early-exit language models."""

__version__ = "0.1.0"
