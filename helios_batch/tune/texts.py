"""What full-depth jobs wrote, as token sequences to learn from."""

from __future__ import annotations

import pyarrow.parquet as pq

from helios_batch.data.reader import RowReader
from helios_batch.job import Job
from helios_batch.models.tokenizer import Tokenizer
from helios_batch.models.tuning.states import Text
from helios_batch.records import FinishReason, Prompt, RowError


def written_texts(job: Job, tokenizer: Tokenizer) -> list[Text]:
    """Return prompt and continuation of each row of a finished job that has one.

    The continuation is tokenized from its text. Where that gives other tokens than were drawn, the
    full model is asked anew what comes next, so that targets are always its own.
    """
    reader = RowReader(job.table, job.renderer.columns)
    rows = job.renderer.render(reader.read(0, job.table.rows), 0)
    columns = ["generated_text", "finish_reason"]
    parts = [job.output.path / job.shards[i].part_name for i in range(len(job.shards))]
    written = [row for part in parts for row in pq.read_table(part, columns=columns).to_pylist()]
    pairs = [
        (prompt.content, row)
        for prompt, row in zip(rows, written, strict=True)
        if isinstance(prompt, Prompt) and row["generated_text"] is not None
    ]
    prompts = tokenizer.encode([content for content, _ in pairs])
    continuations = tokenizer.encode_plain([row["generated_text"] for _, row in pairs])
    # a label and a stop string have no end of text behind them
    no_end = job.spec.sampling.stop or job.spec.task.type == "label"
    ends = [] if no_end else sorted(job.model.eos_tokens)[:1]
    texts = []
    for prompt, continuation, (_, row) in zip(prompts, continuations, pairs, strict=True):
        if isinstance(prompt, RowError):
            continue
        stopped = row["finish_reason"] == FinishReason.STOP.value
        tokens = [*prompt, *continuation, *(ends if stopped else [])]
        tokens = tokens[: job.model.config.context_length]
        if len(tokens) > len(prompt):
            texts.append(Text(tokens, len(prompt)))
    return texts
