"""Varied prompts, for exits that are to serve any job of a model.

`python -m helios_batch.tune.prompts FOLDER` writes `chats.parquet` (questions about the standard
library's docstrings and about everyday topics) and `texts.parquet` (beginnings of docstrings and of
source code, to be continued). Both are drawn with a fixed seed.
"""

from __future__ import annotations

import ast
import random
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from helios_batch.records import Message
from helios_batch.samples import docstrings

_SEED = 7
_DOCSTRING_CHATS, _TEXTS, _SOURCES = 1500, 1000, 500
_SYSTEMS = (None, None, "You write terse technical summaries.", "You are a helpful AI assistant.")
_ABOUT_TEXTS = (
    "Summarize in one sentence:\n{}",
    "Explain this to a beginner:\n{}",
    "Rewrite in simpler words:\n{}",
    "What does this do?\n{}",
    "List three key points of this text:\n{}",
    "Give a short title for this text:\n{}",
    "Write a question that this text answers:\n{}",
)
_ABOUT_TOPICS = (
    "Write a short paragraph about {}.",
    "Explain {} to a child.",
    "What is interesting about {}?",
    "Give me five facts about {}.",
    "Write a short story about {}.",
    "Why does {} matter?",
    "Write a poem about {}.",
    "How would you describe {}?",
    "What are common mistakes people make about {}?",
    "Write an email to a friend about {}.",
)
_TOPICS = [
    "the sea",
    "volcanoes",
    "bread",
    "chess",
    "the moon",
    "bicycles",
    "honey bees",
    "photosynthesis",
    "the Roman empire",
    "jazz",
    "sleep",
    "rivers",
    "electric cars",
    "gravity",
    "coffee",
    "libraries",
    "friendship",
    "algebra",
    "computer networks",
    "Python lists",
    "databases",
    "birds",
    "glaciers",
    "democracy",
    "money",
    "football",
    "the heart",
    "vaccines",
    "trees",
    "castles",
    "clocks",
    "maps",
    "dreams",
    "the brain",
    "steam engines",
    "poetry",
    "cats",
    "dogs",
    "deserts",
    "rainbows",
    "cooking rice",
    "gardening",
    "swimming",
    "mountains",
    "telescopes",
    "batteries",
    "recycling",
    "bridges",
    "painting",
    "the piano",
]


def write_prompts(folder: Path) -> tuple[Path, Path]:
    """Write both files; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(_SEED)
    documents = [row["docstring"] for row in docstrings()]
    chance.shuffle(documents)
    chats = [
        _chat(chance.choice(_ABOUT_TEXTS).format(text[:600]), chance.choice(_SYSTEMS))
        for text in documents[:_DOCSTRING_CHATS]
    ]
    chats += [_chat(form.format(topic), None) for topic in _TOPICS for form in _ABOUT_TOPICS]
    texts = [
        text[: chance.randint(60, 400)]
        for text in documents[_DOCSTRING_CHATS : _DOCSTRING_CHATS + _TEXTS]
    ]
    sources = list(_definitions())
    chance.shuffle(sources)
    texts += [source[: chance.randint(80, 400)] for source in sources[:_SOURCES]]
    files = folder / "chats.parquet", folder / "texts.parquet"
    pq.write_table(pa.table({"messages": chats}), files[0])
    pq.write_table(pa.table({"text": texts}), files[1])
    return files


def _chat(question: str, system: str | None) -> list[Message]:
    user: Message = {"role": "user", "content": question}
    return [user] if system is None else [{"role": "system", "content": system}, user]


def _definitions() -> Iterator[str]:
    """Yield the source of functions and classes of the standard library's own modules."""
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = file.read_text(encoding="utf-8", errors="ignore")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old code
            tree = ast.parse(text)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                source = ast.get_source_segment(text, node)
                if source and len(source) > 160:
                    yield source


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m helios_batch.tune.prompts FOLDER")
    write_prompts(Path(sys.argv[1]))
