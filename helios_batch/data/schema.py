"""The output schema: passed-through columns, then the columns this project adds."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from helios_batch.data.source import InputTable
from helios_batch.errors import InputError
from helios_batch.records import Generation

_ROW_ID = pa.struct([("file", pa.string()), ("row", pa.int64())])
_EXIT = pa.struct(
    [
        ("model", pa.string()),
        ("num_layers", pa.int16()),
        ("layers_loaded", pa.int16()),
        ("token_layers", pa.list_(pa.int16())),
        ("token_confidences", pa.list_(pa.float32())),
        ("mean_confidence", pa.float32()),
        ("min_confidence", pa.float32()),
        ("breaches", pa.int32()),
        ("stage", pa.int16()),
        ("audited", pa.bool_()),
        ("agreement", pa.float32()),
    ]
)
_ERROR = pa.struct([("code", pa.string()), ("message", pa.string())])
GENERATED = pa.schema(
    [
        ("row_id", _ROW_ID),
        ("generated_text", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("exit", _EXIT),
        ("error", _ERROR),
    ]
)


def output_schema(table: InputTable, passed: Sequence[str]) -> pa.Schema:
    """Return the schema of every part: columns `passed` of the input, then `GENERATED`.

    Raises:
        InputError: a passed-through column has the name of a generated one.
    """
    table.require(tuple(passed), "input.columns")
    clashes = [name for name in passed if name in GENERATED.names]
    if clashes:
        raise InputError(
            f"input columns have names of output columns: {', '.join(clashes)}",
            where=table.files[0].name,
            fix="leave them out with input.columns, or rename them in the input",
        )
    fields = [table.schema.field(name).remove_metadata() for name in passed]
    return pa.schema([*fields, *GENERATED])


def passed_columns(schema: pa.Schema) -> list[str]:
    """Return the passed-through columns of an output schema."""
    return list(schema.names[: len(schema) - len(GENERATED)])


def part_table(
    schema: pa.Schema,
    rows: pa.Table,
    ids: Sequence[tuple[str, int]],
    generations: Sequence[Generation],
) -> pa.Table:
    """Return a part of `schema`: `rows` as they came, each with its id and its generation."""
    columns = {
        "row_id": [{"file": file, "row": row} for file, row in ids],
        "generated_text": [g.text for g in generations],
        "finish_reason": [g.finish_reason.value for g in generations],
        "prompt_tokens": [g.prompt_tokens for g in generations],
        "completion_tokens": [g.completion_tokens for g in generations],
        "exit": [_exit(g) for g in generations],
        "error": [
            {"code": g.error.code.value, "message": g.error.message} if g.error else None
            for g in generations
        ],
    }
    added = [pa.array(columns[field.name], field.type) for field in GENERATED]
    passed = [rows.column(name) for name in passed_columns(schema)]
    return pa.Table.from_arrays([*passed, *added], schema=schema)


def _exit(generation: Generation) -> dict[str, object] | None:
    record = generation.exit
    if record is None:
        return None
    confidences = record.token_confidences
    return {
        "model": record.model,
        "num_layers": record.num_layers,
        "layers_loaded": record.token_layers[-1],
        "token_layers": record.token_layers,
        "token_confidences": confidences,
        "mean_confidence": sum(confidences) / len(confidences),
        "min_confidence": min(confidences),
        # what no policy decided yet has no value to report
        "breaches": None,
        "stage": 0,
        "audited": False,
        "agreement": None,
    }
