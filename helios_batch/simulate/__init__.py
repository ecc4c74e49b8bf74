"""The policies at a scale that is not at hand: their own code, on an engine of seconds only."""
