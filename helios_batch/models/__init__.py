"""Packs, checkpoints, greedy layer loading and the decoder."""
