"""Documents out of files: docstrings and prose on one side, bare source code on the other."""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Iterator

_SHORTEST = 80  # characters; one-line docstrings say little


def docs_documents(text: str, suffix: str) -> Iterator[str]:
    """Yield a Python file's docstrings with their indentation cleaned, or a whole text file."""
    if suffix != ".py":
        yield text.strip() + "\n"
        return
    for node in _docstrings(text):
        cleaned = inspect.cleandoc(str(node.value)).strip()
        if len(cleaned) >= _SHORTEST:
            yield cleaned + "\n"


def code_documents(text: str, suffix: str) -> Iterator[str]:
    """Yield a Python file's source with its docstrings left out; nothing for other files."""
    nodes = list(_docstrings(text)) if suffix == ".py" else []
    if suffix != ".py":
        return
    lines = text.splitlines()
    for node in nodes:
        first, last = node.lineno - 1, node.end_lineno or node.lineno
        # a docstring that shares its lines with code stays
        if not lines[first][: node.col_offset].strip():
            lines[first:last] = [""] * (last - first)
    kept: list[str] = []
    for line in lines:
        if line.strip() or (kept and kept[-1]):
            kept.append(line.rstrip())
    source = "\n".join(kept).strip()
    if len(source) >= _SHORTEST:
        yield source + "\n"


def _docstrings(text: str) -> Iterator[ast.Constant]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's files
            tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = node.body[0] if node.body else None
        if (
            isinstance(first, ast.Expr)
            and isinstance(first.value, ast.Constant)
            and isinstance(first.value.value, str)
        ):
            yield first.value
