"""The model repository as `models list` and `models show` print it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from helios_batch.models.packs import PACKS, is_fetched, pack_folder
from helios_batch.models.repository.entry import Entry, Measurement, Repository

_Cells = dict[str, object]
_IN_ONE_LINE = ("model", "date")
_LONGEST_LINE = 20


def listing(repository: Repository) -> list[dict[str, Any]]:
    """Return the packs, and the other models of the repository, with what is known of each.

    `fetched` is null for what is no pack, and `fastest` for what was never timed.
    """
    packs = [
        asdict(pack) | {"fetched": is_fetched(pack)} | _known(repository.find(name))
        for name, pack in PACKS.items()
    ]
    others = [
        {"name": entry.name, "num_layers": entry.num_layers, "fetched": None} | _known(entry)
        for entry in repository.entries
        if entry.name not in PACKS
    ]
    return packs + others


def _known(entry: Entry | None) -> dict[str, Any]:
    keys = ("family", "tokenizer", "exits", "fastest")
    if entry is None:
        return dict.fromkeys(keys)
    fastest = entry.fastest
    return {
        "family": entry.family,
        "tokenizer": entry.tokenizer,
        "exits": entry.exits,
        "fastest": fastest.model_dump(mode="json", exclude_none=True) if fastest else None,
    }


def list_tables(rows: Sequence[dict[str, Any]]) -> Group:
    """Return `listing`'s rows as two tables: the packs, and the repository."""
    packs = Table("pack", "model", "layers", "licence", "fetched to", title="packs")
    for row in rows:
        if pack := PACKS.get(row["name"]):
            place = str(pack_folder(pack)) if row["fetched"] else "not fetched"
            packs.add_row(pack.name, pack.title, str(pack.num_layers), pack.license, Text(place))
    return Group(packs, _table("model repository", [_listed(row) for row in rows]))


def _listed(row: dict[str, Any]) -> _Cells:
    best = row["fastest"]
    return {
        "model": row["name"],
        "family": row["family"],
        "tokenizer": row["tokenizer"],
        "layers": row["num_layers"],
        "exits": _exits(row["exits"]),
        "most tokens/s": best and _rate(best["tokens_per_second"]),
        "where measured": best
        and f"depth {best['depth']}, {best['dtype']}, {best['task']}; {best['hardware']}",
    }


def entry_facts(entry: Entry, *, shape: bool) -> dict[str, str]:
    """Return what the repository says of a model, by name; with `shape`, layers and exits too."""
    facts: _Cells = {"family": entry.family, "tokenizer group": entry.tokenizer}
    if shape:
        facts |= {"num layers": entry.num_layers, "exits": _exits(entry.exits)}
    return {name: str(value) for name, value in facts.items() if value is not None}


def measured_table(measured: Sequence[Measurement]) -> Table:
    """Return a model's measurements, by task and depth."""
    ordered = sorted(measured, key=lambda one: (one.task, one.hardware, one.dtype, one.depth))
    return _table("measured", [_measured(found) for found in ordered])


def _measured(found: Measurement) -> _Cells:
    size, quality = found.memory_bytes, found.quality
    return {
        "task": found.task,
        "hardware": found.hardware,
        "dtype": found.dtype,
        "depth": found.depth,
        "tokens/s": _rate(found.tokens_per_second),
        "rows/s": _rate(found.rows_per_second),
        "memory": size and f"{size / 1e6:,.0f} MB, batch {found.batch}",
        "quality": quality and f"{quality.value:.1%} ({quality.metric}, against {quality.against})",
        "measured by": found.measured_by,
        "date": found.date,
    }


def _exits(exits: Sequence[int] | str | None) -> str | None:
    if exits is None or isinstance(exits, str):
        return "every layer" if exits else None
    return ", ".join(map(str, exits))


def _rate(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _table(title: str, rows: Sequence[_Cells]) -> Table:
    """Return a table of the columns that are not empty; its cells are never cut, but folded."""
    table = Table(title=title)
    columns = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    for name in columns:
        short = all(len(str(row[name])) <= _LONGEST_LINE for row in rows)
        table.add_column(name, overflow="fold", no_wrap=short and name in _IN_ONE_LINE)
    for row in rows:
        cells = (row[name] for name in columns)
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in cells))
    return table
