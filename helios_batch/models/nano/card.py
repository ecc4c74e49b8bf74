"""Write the models' cards: `python -m helios_batch.models.nano.card MEASURED FOLDER FOLDER`.

A card is made of what the training noted in training.json and of the measured figures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

_TEXT = {"docs": "the documentation of Python code", "code": "Python source code"}
_CARD = """\
---
license: apache-2.0
tags: [early-exit]
---

# {name}

A Llama decoder of 12 layers and {parameters:.1f} million parameters, made for early exit: it may
leave after any layer through its own final norm and output head. It was trained from scratch on
{text}. It serves tests and benchmarks of early-exit policies, together with its
twin `{twin}`, whose tokenizer it shares.

**Limits.** It is no good writer: it has seen little text, knows names and turns of phrase, often
repeats itself, and nothing it says about an API should be believed. It knows English and Python
only, follows no instructions, and has a context of 512 tokens (it was trained on 256).

## How it was trained

```
python -m helios_batch.models.nano OUT --kind {kind} --steps {steps} --seed {seed} --threads 1
```

- {steps:,} steps of 2,048 tokens ({seen:.1f} million) out of {train_tokens:,} tokens; one thread,
  {minutes:.0f} minutes on a shared machine, torch {torch}, matrix products in bfloat16. The same
  seed, packages and kind of CPU give the same weights up to rounding.
- After LayerSkip (arXiv 2404.16710): layer dropout growing with depth up to 0.2, and early-exit
  losses at all layers in rotation, through the shared norm and head. Other than there: an exit
  weighs as its depth; its loss is taken at a quarter of the positions; half of an exit's target is
  the last layer's distribution (self-distillation); a layer is dropped for a whole batch.
{optimizer}
- Tokenizer: byte-level BPE of 4,096 tokens, trained on three million characters of each kind.
- One file in 16, chosen by its content's hash, was held out.

## On what

{what}

| package | version | licence in its metadata |
| --- | --- | --- |
{sources}

At most 6 MB of each, tests left out.

## How good

`python -m helios_batch.models.nano.measure`, {prompts} held-out prompts of 48 tokens and the 64
tokens after them, in float32. "Agreement": the layer's likeliest token is layer 12's, given the
same tokens before. "Over 0.9": the layer's probability of its likeliest token is over 0.9.

{tables}

Both models together at layer 6: the share of tokens of which the first is confident, the second of
the rest, and one or the other.

{pairs}
"""
_OPTIMIZER = """\
- Muon for the matrices of the layers, AdamW for embedding and norms; peak rate 0.003 (Muon twice
  that, scaled to AdamW's), 60 steps of warm-up, then a cosine down to a twentieth."""
_WHAT = {
    "docs": "Docstrings of at least 80 characters, their indentation cleaned, and `.rst` and `.md` "
    "files, each\ndocument once, of:",
    "code": "Python source files with their docstrings left out, each once, of:",
}


def main() -> None:
    """Write README.md into each folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measured", type=Path, help="the JSON that the measurement wrote")
    parser.add_argument("folders", type=Path, nargs=2, help="the two models' folders")
    options = parser.parse_args()
    measured = json.loads(options.measured.read_text(encoding="utf-8"))
    names = [folder.resolve().name for folder in options.folders]
    for folder, name, twin in zip(options.folders, names, reversed(names), strict=True):
        text = write_card(folder, name, twin, measured)
        (folder / "README.md").write_text(text, encoding="utf-8")


def write_card(folder: Path, name: str, twin: str, measured: dict[str, Any]) -> str:
    """Return the text of a model's card."""
    note = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    size = (folder / "model.safetensors").stat().st_size
    return _CARD.format(
        **{key: value for key, value in note.items() if key != "sources"},
        name=name,
        twin=twin,
        text=_TEXT[note["kind"]],
        what=_WHAT[note["kind"]],
        optimizer=_OPTIMIZER,
        parameters=size / 2e6,
        seen=note["steps"] * 2048 / 1e6,
        minutes=note["seconds"] / 60,
        prompts=measured["prompts"],
        sources="\n".join(
            f"| {source['name']} | {source['version']} | {source['licence']} |"
            for source in note["sources"]
        ),
        tables="\n\n".join(_table(one) for one in measured["single"] if one["model"] == name),
        pairs=_pairs(measured["pairs"]),
    )


def _table(figures: dict[str, Any]) -> str:
    """One text's figures by layer."""
    layers = range(1, len(figures["agreement"]) + 1)
    title = f"{figures['text'].capitalize()} ({figures['tokens']:,} tokens"
    if "repeated_8_grams" in figures:
        title += f", {figures['repeated_8_grams']:.0%} of them ending 8 tokens written before"
    rows = [
        f"{title}):\n",
        "| layer | " + " | ".join(map(str, layers)) + " |",
        "| --- " * (len(layers) + 1) + "|",
        "| agreement | " + _percent(figures["agreement"]),
    ]
    for threshold, shares in figures["over"].items():
        rows.append(f"| over {threshold} | " + _percent(shares))
        rows.append("| of these agreeing | " + _percent(figures["agreement_over"][threshold]))
    return "\n".join(rows)


def _pairs(pairs: list[dict[str, Any]]) -> str:
    """The pair's coverage on each text, by threshold."""
    rows = [
        "| text | first, then second | over | first | second, of the rest | together |",
        "| --- " * 6 + "|",
    ]
    for pair in pairs:
        order = " then ".join(pair[key].rpartition("-")[2] for key in ("first", "second"))
        for threshold, shares in pair["by"].items():
            kept = (shares[key] for key in ("first", "second_of_the_rest", "together"))
            rows.append(f"| {pair['text']} | {order} | {threshold} | {_percent(list(kept))}")
    return "\n".join(rows)


def _percent(shares: list[float]) -> str:
    return "".join(f"{share:.0%} | " for share in shares).rstrip()


if __name__ == "__main__":
    main()
