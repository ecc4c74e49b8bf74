"""Rendering prompts, and the errors of single rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helios_batch.data.prompts import PromptRenderer
from helios_batch.data.source import open_input
from helios_batch.errors import InputError, SpecError, UsageError
from helios_batch.records import ErrorCode, Prompt, RowError
from helios_batch.spec import PromptSpec

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def render(folder: Path, columns: dict[str, Any], **spec: str) -> list[Prompt | RowError]:
    """Render every row of a table made of `columns`."""
    table = pa.table(columns)
    pq.write_table(table, folder / "in.parquet")
    renderer = PromptRenderer(PromptSpec(**spec), open_input(str(folder / "in.parquet")))
    return renderer.render(table, 100)


def contents(results: list[Prompt | RowError]) -> list[Any]:
    return [r.content if isinstance(r, Prompt) else r.code for r in results]


def test_template(tmp_path: Path) -> None:
    """Columns are the template's variables; rows keep their numbers; newlines stay."""
    template = "{{ a|upper }}{% if n > 1 %}!{% endif %}\n"
    found = render(tmp_path, {"a": ["x", "y"], "n": [1, 2]}, template=template)
    assert found == [Prompt(100, "X\n"), Prompt(101, "Y!\n")]


def test_column_and_system(tmp_path: Path) -> None:
    """A column is taken as it is; with a system prompt it becomes a chat."""
    columns = {"a": pa.array(["x", None]).dictionary_encode()}
    assert contents(render(tmp_path, columns, column="a")) == ["x", ErrorCode.NULL_PROMPT]
    [chat, _] = contents(render(tmp_path, columns, column="a", system="s"))
    assert chat == ({"role": "system", "content": "s"}, {"role": "user", "content": "x"})


def test_messages(tmp_path: Path) -> None:
    """Lists of role and content become chats; misshapen ones are errors of their rows."""
    good = [{"role": "user", "content": "hi"}]
    rows = [good, None, [], [{"role": None, "content": "x"}], [{"role": "user", "content": None}]]
    found = render(tmp_path, {"m": pa.array(rows, MESSAGES)}, messages="m")
    assert contents(found) == [
        tuple(good),
        ErrorCode.NULL_PROMPT,
        ErrorCode.BAD_MESSAGES,
        ErrorCode.BAD_MESSAGES,
        ErrorCode.BAD_MESSAGES,
    ]


def test_columns_hide_jinjas_globals(tmp_path: Path) -> None:
    """A column named `range` or `namespace` is the column; elsewhere they are Jinja's."""
    found = render(
        tmp_path, {"range": ["a"], "namespace": ["b"]}, template="{{ range }}{{ namespace }}"
    )
    assert contents(found) == ["ab"]
    found = render(tmp_path, {"n": [2]}, template="{% for i in range(n) %}x{% endfor %}")
    assert contents(found) == ["xx"]


def test_values_that_python_has_no_form_for(tmp_path: Path) -> None:
    """Invalid UTF-8 is an error of its row alone; nanoseconds render as microseconds do."""
    bytes_ = pa.array([b"ok", b"\xff", b"fine"])
    texts = pa.StringArray.from_buffers(3, bytes_.buffers()[1], bytes_.buffers()[2])
    assert contents(render(tmp_path, {"a": texts}, template="{{ a }}")) == [
        "ok",
        ErrorCode.TEMPLATE_ERROR,
        "fine",
    ]
    when = pa.array([1_700_000_000_123_456_789], pa.timestamp("ns"))
    assert contents(render(tmp_path, {"t": when}, template="{{ t }}")) == [
        "2023-11-14 22:13:20.123456"
    ]


@pytest.mark.parametrize(
    ("template", "code"),
    [
        ("{{ a }}", ErrorCode.NULL_PROMPT),
        ("{{ a.b }}", ErrorCode.TEMPLATE_ERROR),
        ("{{ 1 / n }}", ErrorCode.TEMPLATE_ERROR),
        ("{{ ''.__class__.__mro__ }}", ErrorCode.TEMPLATE_ERROR),
        ("{{ range(10 ** 9) | list }}", ErrorCode.TEMPLATE_ERROR),
        ("{% if a %}x{% endif %}", ErrorCode.EMPTY_PROMPT),
    ],
)
def test_what_a_template_can_do_to_a_row(tmp_path: Path, template: str, code: ErrorCode) -> None:
    """Nulls, failures and attempts to leave the sandbox are errors of that row."""
    columns = {"a": pa.array([None], pa.string()), "n": [0]}
    [error] = render(tmp_path, columns, template=template)
    assert isinstance(error, RowError)
    assert error.code == code
    assert error.message


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ({"template": "{{ a"}, SpecError, "the template does not parse"),
        ({"template": "{{ nope }}"}, InputError, "column 'nope' is not in the input"),
        ({"column": "nope"}, InputError, "prompt.column"),
        ({"column": "n"}, InputError, "'n' is int64, which is no string"),
        ({"messages": "a"}, InputError, "which is no list<struct<role"),
    ],
)
def test_what_is_found_before_the_first_row(
    tmp_path: Path, spec: dict[str, str], error: type[UsageError], message: str
) -> None:
    """Templates that don't parse, missing columns and wrong types end the job at once."""
    with pytest.raises(error, match=message):
        render(tmp_path, {"a": ["x"], "n": [1]}, **spec)
