"""A table of facts: a name and a value a line."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

_EXITS = {
    "full": "the model's own, at full depth",
    "plain": "the model's own head on a layer it was not trained for: not to be trusted",
    "ee": "for each token the first of the model's that is sure of it",
    "native": "the model's own; it was trained to be left at any layer",
}


def exit_text(exit_: str) -> str:
    """Say what tokens leave through; see `records.EngineFacts`."""
    return _EXITS.get(exit_, f"trained, {exit_}")


def facts_table(title: str, facts: Mapping[str, str]) -> Table:
    """Return `facts` as a table; values are shown as they are, brackets included."""
    table = Table(title=Text(title), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, Text(value))
    return table
