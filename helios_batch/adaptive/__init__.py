"""The engine of the policies helios and helios-single: it tries, chooses, watches and reacts."""
