"""Measure the two models: `python -m helios_batch.models.nano.measure FOLDER FOLDER`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from helios_batch.models.nano.corpus import KINDS, build_corpus, installed_sources
from helios_batch.models.nano.depths import (
    Depths,
    load,
    read,
    repeated_share,
    sample_pieces,
    write,
)

PROMPT, NEW = 48, 64
THRESHOLDS = (0.5, 0.7, 0.9)
EXIT = 6  # of 12 layers: where the pair is compared


def main() -> None:
    """Measure on held-out text of both kinds; print tables, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="the models' folders")
    parser.add_argument("--prompts", type=int, default=200, help="of each kind of text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures = measure(options.folders, options.prompts, options.seed, print)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def measure(
    folders: list[Path], prompts: int, seed: int, report: Callable[[str], None]
) -> dict[str, Any]:
    """Return all figures of the models in `folders`; report each as a line of a table."""
    models = {folder.resolve().name: load(folder) for folder in folders}
    tokenizer = Tokenizer.from_file(str(folders[0] / "tokenizer.json"))
    sources = installed_sources()
    singles: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for kind in KINDS:
        held_out = build_corpus(kind, sources).held_out
        true = sample_pieces(tokenizer, held_out, prompts, PROMPT + NEW, seed)
        depths = {name: read(model, true, PROMPT) for name, model in models.items()}
        for name in models:
            singles.append(_single(name, f"{kind}, held-out", depths[name], report))
        for first, second in permutations(models, 2):
            text = f"{kind}, held-out"
            pairs.append(_pair(first, second, text, depths[first], depths[second], report))
        for writer, model in models.items():
            written = write(model, true[:, :PROMPT], NEW)
            depths = {name: read(other, written, PROMPT) for name, other in models.items()}
            text = f"{kind}, written by {writer}"
            single = _single(writer, text, depths[writer], report)
            single["repeated_8_grams"] = round(repeated_share(written, PROMPT), 4)
            report(
                f"  of these tokens {single['repeated_8_grams']:.1%} repeat 8 tokens seen before"
            )
            singles.append(single)
            for other in models.keys() - {writer}:
                pairs.append(_pair(writer, other, text, depths[writer], depths[other], report))
    return {"prompt": PROMPT, "new": NEW, "prompts": prompts, "single": singles, "pairs": pairs}


def _single(name: str, text: str, depths: Depths, report: Callable[[str], None]) -> dict[str, Any]:
    """Agreement with the last layer, and share over each threshold, by depth."""
    agree = depths.agree.float()
    figures: dict[str, Any] = {
        "model": name,
        "text": text,
        "tokens": agree.shape[1],
        "agreement": _rounded(agree.mean(1)),
        "over": {},
        "agreement_over": {},
    }
    report(f"\n{name} on {text} ({agree.shape[1]} tokens)")
    report("  layer          " + "".join(f"{depth:7d}" for depth in range(1, len(agree) + 1)))
    report("  agreement      " + _percent(figures["agreement"]))
    for threshold in THRESHOLDS:
        over = (depths.confidences > threshold).float()
        figures["over"][str(threshold)] = _rounded(over.mean(1))
        right = (over * agree).sum(1) / over.sum(1).clamp(min=1)
        figures["agreement_over"][str(threshold)] = _rounded(right)
        report(f"  over {threshold}       " + _percent(figures["over"][str(threshold)]))
        report("    agreeing     " + _percent(figures["agreement_over"][str(threshold)]))
    return figures


def _pair(
    first: str, second: str, text: str, one: Depths, two: Depths, report: Callable[[str], None]
) -> dict[str, Any]:
    """What `first` is confident of at layer `EXIT`, `second` of the rest, and both together."""
    figures: dict[str, Any] = {"first": first, "second": second, "text": text, "by": {}}
    report(f"\n{first}, then {second}, at layer {EXIT}, on {text}")
    for threshold in THRESHOLDS:
        sure = one.confidences[EXIT - 1] > threshold
        also = two.confidences[EXIT - 1] > threshold
        shares = {
            "first": sure.float().mean(),
            "second_alone": also.float().mean(),
            "second_of_the_rest": (also & ~sure).sum() / (~sure).sum().clamp(min=1),
            "together": (sure | also).float().mean(),
        }
        figures["by"][str(threshold)] = {k: round(float(v), 4) for k, v in shares.items()}
        line = ", ".join(f"{k.replace('_', ' ')} {float(v):.1%}" for k, v in shares.items())
        report(f"  over {threshold}: {line}")
    return figures


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def _percent(shares: list[float]) -> str:
    return "".join(f"{share:7.1%}" for share in shares)


if __name__ == "__main__":
    main()
