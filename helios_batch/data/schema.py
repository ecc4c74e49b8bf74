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
        ("reactions", pa.list_(pa.string())),
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
_TEXT = GENERATED.get_field_index("generated_text")


def generated_schema(choices: Sequence[str] = ()) -> pa.Schema:
    """Return the columns that are added to a row: `GENERATED`, and two more if it gets a label."""
    if not choices:
        return GENERATED
    probabilities = pa.struct([(choice, pa.float32()) for choice in choices])
    labelled = GENERATED.insert(_TEXT + 1, pa.field("label", pa.string()))
    return labelled.insert(_TEXT + 2, pa.field("label_probability", probabilities))


def output_schema(
    table: InputTable, passed: Sequence[str], choices: Sequence[str] = ()
) -> pa.Schema:
    """Return the schema of every part: columns `passed` of the input, then the added ones.

    `choices` are those of a label task, and none of another.

    Raises:
        InputError: a passed-through column has the name of a generated one.
    """
    table.require(tuple(passed), "input.columns")
    added = generated_schema(choices)
    clashes = [name for name in passed if name in added.names]
    if clashes:
        raise InputError(
            f"input columns have names of output columns: {', '.join(clashes)}",
            where=table.files[0].name,
            fix="leave them out with input.columns, or rename them in the input",
        )
    fields = [table.schema.field(name).remove_metadata() for name in passed]
    return pa.schema([*fields, *added])


def passed_columns(schema: pa.Schema) -> list[str]:
    """Return the passed-through columns of an output schema."""
    return list(schema.names[: schema.names.index(GENERATED.names[0])])


def part_table(
    schema: pa.Schema,
    rows: pa.Table,
    ids: Sequence[tuple[str, int]],
    generations: Sequence[Generation],
) -> pa.Table:
    """Return a part of `schema`: `rows` as they came, each with its id and its generation."""
    names = passed_columns(schema)
    kinds = {field.name: field.type for field in list(schema)[len(names) :]}
    columns = {
        "row_id": [{"file": file, "row": row} for file, row in ids],
        "generated_text": [g.text for g in generations],
        "label": [g.label for g in generations],
        "label_probability": _probabilities(kinds.get("label_probability"), generations),
        "finish_reason": [g.finish_reason.value for g in generations],
        "prompt_tokens": [g.prompt_tokens for g in generations],
        "completion_tokens": [g.completion_tokens for g in generations],
        "exit": [_exit(g) for g in generations],
        "error": [
            {"code": g.error.code.value, "message": g.error.message} if g.error else None
            for g in generations
        ],
    }
    passed = [rows.column(name) for name in names]
    added = [pa.array(columns[name], kind) for name, kind in kinds.items()]
    return pa.Table.from_arrays([*passed, *added], schema=schema)


def _probabilities(
    kind: pa.StructType | None, generations: Sequence[Generation]
) -> list[dict[str, float] | None]:
    """Return each row's probabilities by choice; without such a column, nothing."""
    choices = [field.name for field in kind or ()]
    return [
        dict(zip(choices, g.label_probability, strict=True)) if g.label_probability else None
        for g in generations
    ]


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
        "breaches": record.breaches,
        "stage": record.stage,
        "audited": record.audited,
        "agreement": record.agreement,
        "reactions": record.reactions,
    }
