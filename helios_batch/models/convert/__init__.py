"""Turning checkpoints that come with exits into model folders with exit files."""
