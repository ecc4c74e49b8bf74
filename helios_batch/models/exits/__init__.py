"""Exit heads: what stands between the last loaded layer of a model and its output head."""
