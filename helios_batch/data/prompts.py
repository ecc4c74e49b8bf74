"""From rows to prompts: sandboxed templates, plain columns, chat messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jinja2
import jinja2.meta
import pyarrow as pa
from jinja2.sandbox import ImmutableSandboxedEnvironment

from helios_batch.data.source import InputTable
from helios_batch.errors import InputError, SpecError
from helios_batch.records import ErrorCode, Message, Prompt, RowError
from helios_batch.spec import PromptSpec

_Render = Callable[[dict[str, Any]], str | tuple[Message, ...]]


class _BadRowError(Exception):
    def __init__(self, code: ErrorCode, message: str) -> None:
        self.error = RowError(code, message)


class PromptRenderer:
    """Renders rows into prompts; `columns` are the input columns it needs.

    Raises:
        SpecError: the template does not parse.
        InputError: a column is missing or has a type that can't hold a prompt.
    """

    def __init__(self, spec: PromptSpec, table: InputTable) -> None:
        self.makes_chat = spec.system is not None or spec.messages is not None
        self._system = spec.system
        self.columns: tuple[str, ...]
        self._render: _Render
        if spec.template is not None:
            self.columns, self._render = _template(spec.template, set(table.schema.names))
            table.require(self.columns, "prompt.template")
        elif spec.column is not None:
            self.columns, self._render = (spec.column,), _column(spec.column)
            table.require(self.columns, "prompt.column")
            _require_type(table, spec.column, "prompt.column", _is_text, "string")
        elif spec.messages is not None:
            self.columns, self._render = (spec.messages,), _messages(spec.messages)
            table.require(self.columns, "prompt.messages")
            wanted = "list<struct<role: string, content: string>>"
            _require_type(table, spec.messages, "prompt.messages", _is_messages, wanted)

    def render(self, rows: pa.Table, first_row: int) -> list[Prompt | RowError]:
        """Render each of `rows`; the first of them is row `first_row` of the input."""
        return [
            self._render_row(first_row + i, values)
            for i, values in enumerate(_values(rows, list(self.columns)))
        ]

    def _render_row(self, row: int, values: dict[str, Any] | RowError) -> Prompt | RowError:
        if isinstance(values, RowError):
            return values
        try:
            content = self._render(values)
        except _BadRowError as exc:
            return exc.error
        if isinstance(content, str):
            if not content:
                return RowError(ErrorCode.EMPTY_PROMPT, "the prompt has no text")
            if self._system is not None:
                system: Message = {"role": "system", "content": self._system}
                return Prompt(row, (system, {"role": "user", "content": content}))
        return Prompt(row, content)


def _values(rows: pa.Table, columns: list[str]) -> list[dict[str, Any] | RowError]:
    """Return each row's columns as Python values, or why they can't be had (invalid UTF-8)."""
    if not columns:
        return [{}] * len(rows)
    wanted = rows.select(columns)
    for i, field in enumerate(wanted.schema):
        # Python's datetime ends at microseconds; without this, pandas would have a say
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            kind = pa.timestamp("us", field.type.tz)
            wanted = wanted.set_column(i, field.name, wanted.column(i).cast(kind, safe=False))
    try:
        values: list[dict[str, Any] | RowError] = wanted.to_pylist()
    except ValueError:
        values = []
        for i in range(len(wanted)):
            try:
                values += wanted.slice(i, 1).to_pylist()
            except ValueError as exc:
                text = f"a value can't be read: {exc}"
                values.append(RowError(ErrorCode.TEMPLATE_ERROR, text))
    return values


def _template(source: str, columns: set[str]) -> tuple[tuple[str, ...], _Render]:
    environment = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=_refuse_null
    )
    # a column hides a global of Jinja that has its name, such as `range`
    for name in columns.intersection(environment.globals):
        del environment.globals[name]
    try:
        template = environment.from_string(source)
        names = jinja2.meta.find_undeclared_variables(environment.parse(source))
    except jinja2.TemplateSyntaxError as exc:
        raise SpecError(
            f"the template does not parse: {exc.message}",
            where=f"prompt.template, line {exc.lineno}",
            fix="write Jinja2, with input columns as variables: {{ column }}",
        ) from None

    def render(values: dict[str, Any]) -> str:
        try:
            return template.render(values)
        except _BadRowError:
            raise
        except Exception as exc:  # a template can raise anything that Python can
            message = f"{type(exc).__name__}: {exc}"
            raise _BadRowError(ErrorCode.TEMPLATE_ERROR, message) from None

    return tuple(sorted(names)), render


def _refuse_null(value: object) -> object:
    if value is None:
        raise _BadRowError(ErrorCode.NULL_PROMPT, "the template prints a null value")
    return value


def _column(name: str) -> _Render:
    def render(values: dict[str, Any]) -> str:
        value = values[name]
        if value is None:
            raise _BadRowError(ErrorCode.NULL_PROMPT, f"column {name!r} is null")
        return str(value)

    return render


def _messages(name: str) -> _Render:
    def render(values: dict[str, Any]) -> tuple[Message, ...]:
        messages = values[name]
        if messages is None:
            raise _BadRowError(ErrorCode.NULL_PROMPT, f"column {name!r} is null")
        if not messages:
            raise _BadRowError(ErrorCode.BAD_MESSAGES, "the list of messages is empty")
        for i, message in enumerate(messages):
            if message is None or message["role"] is None or message["content"] is None:
                text = f"message {i} lacks a role or a content: {message!r:.200}"
                raise _BadRowError(ErrorCode.BAD_MESSAGES, text)
        return tuple({"role": m["role"], "content": m["content"]} for m in messages)

    return render


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_messages(kind: pa.DataType) -> bool:
    if not (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    ) or not pa.types.is_struct(kind.value_type):
        return False
    fields = {field.name: field.type for field in kind.value_type}
    return all(key in fields and _is_text(fields[key]) for key in ("role", "content"))


def _require_type(
    table: InputTable, column: str, key: str, fits: Callable[[pa.DataType], bool], wanted: str
) -> None:
    found = table.schema.field(column).type
    if not fits(found):
        raise InputError(
            f"column {column!r} is {found}, which is no {wanted}",
            where=f"{key}, {table.files[0].name}",
            fix=f"name a column of type {wanted}",
        )
