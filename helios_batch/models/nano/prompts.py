"""Prompts for the two models: `python -m helios_batch.models.nano.prompts FOLDER`.

Writes the beginnings of documentation and of source code that neither was trained on, to be gone on
with: `docs_and_code.parquet` in turn, a stretch of one kind after a stretch of the other, and
`docs_and_code_mixed.parquet` in random order.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from helios_batch.models.nano.corpus import KINDS, build_corpus, installed_sources

ROWS_OF_A_KIND = 320
STRETCH = 80
_CHARACTERS = 160
_SEED = 0


def prompts() -> list[dict[str, str]]:
    """Return as many prompts of each kind, in turn by stretches."""
    sources = installed_sources()
    by_kind = {}
    for kind in KINDS:
        draw = random.Random(f"{_SEED}/{kind}")
        texts = [t for t in build_corpus(kind, sources).held_out if len(t) > 2 * _CHARACTERS]
        found = []
        for _ in range(ROWS_OF_A_KIND):
            text = draw.choice(texts)
            begin = draw.randrange(len(text) - _CHARACTERS)
            begin = text.rfind("\n", 0, begin) + 1
            found.append({"kind": kind, "text": text[begin : begin + _CHARACTERS]})
        by_kind[kind] = found
    starts = range(0, ROWS_OF_A_KIND, STRETCH)
    return [row for start in starts for kind in KINDS for row in by_kind[kind][start:][:STRETCH]]


def write_prompts(folder: Path) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = prompts()
    pq.write_table(pa.Table.from_pylist(rows), folder / "docs_and_code.parquet")
    random.Random(_SEED).shuffle(rows)
    pq.write_table(pa.Table.from_pylist(rows), folder / "docs_and_code_mixed.parquet")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m helios_batch.models.nano.prompts FOLDER")
    write_prompts(Path(sys.argv[1]))
