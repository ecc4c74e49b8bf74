"""The policy: what a job's rows are worth at each depth, and what is promised about them."""
