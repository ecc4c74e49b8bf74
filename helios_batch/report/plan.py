"""The output of `plan` for a person."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table

from helios_batch.preflight import Preflight
from helios_batch.report.facts import exit_text, facts_table


def plan_tables(plan: Preflight) -> Group:
    """Return a table of what the job comes to, and one of memory by depth."""
    median, ninetieth, longest = plan.prompt_tokens
    errors = ", ".join(f"{code} {count}" for code, count in plan.sample_errors.items())
    facts = {
        "rows": f"{plan.rows:,} in {plan.files:,} files, {plan.shards:,} shards",
        "prompt tokens": f"median {median:,}, 90 % up to {ninetieth:,}, longest {longest:,} "
        f"(of {plan.sampled_rows:,} rows spread over the input)",
        "new tokens": f"up to {plan.max_new_tokens:,} a row",
        "rows that will fail": f"{errors or 'none'} (in the same sample)",
        "model": f"{plan.model} at {plan.depth} layers, {plan.dtype} on {plan.device}",
        "exit": exit_text(plan.exit),
        **({"depth: auto": plan.contract} if plan.contract else {}),
        "memory budget": _mib(plan.memory_budget),
        "fingerprint": plan.fingerprint,
    }
    memory = Table(
        "layers",
        "weights",
        "activations",
        "KV of one sequence",
        "batch size",
        title=f"Memory by depth, for sequences of {plan.sequence_tokens:,} tokens",
        title_justify="left",
    )
    for row in plan.memory:
        memory.add_row(
            f"{row.depth}{' (this job)' if row.depth == plan.depth else ''}",
            _mib(row.weights),
            _mib(row.activations),
            _mib(row.kv_per_sequence),
            str(row.batch_size) if row.batch_size else "does not fit",
        )
    return Group(facts_table("Plan", facts), memory)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
