"""Train one of the two models: `python -m helios_batch.models.nano OUT --kind docs --steps N`."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from helios_batch.models.nano.corpus import KINDS, build_corpus, installed_sources
from helios_batch.models.nano.export import export
from helios_batch.models.nano.network import Shape
from helios_batch.models.nano.tokenizer import encode, train_tokenizer
from helios_batch.models.nano.train import Settings, Trainer


def main() -> None:
    """Build the corpus, train the tokenizer and the model, and write the model's folder."""
    parser = argparse.ArgumentParser(prog="python -m helios_batch.models.nano", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the model folder is written")
    parser.add_argument("--kind", choices=KINDS, required=True, help="what text to train on")
    parser.add_argument("--steps", type=int, required=True, help="of 2,048 tokens each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true", help="run without a C++ compiler")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    started = time.perf_counter()

    def report(line: str) -> None:
        print(line, flush=True)

    sources = installed_sources()
    corpora = {kind: build_corpus(kind, sources) for kind in KINDS}
    shape = Shape()
    tokenizer = train_tokenizer(
        [corpora[kind].train for kind in KINDS], shape.vocab_size, options.seed
    )
    corpus = corpora[options.kind]
    train, held_out = encode(tokenizer, corpus.train), encode(tokenizer, corpus.held_out)
    report(f"{len(train)} tokens to train on, {len(held_out)} held out")
    settings = Settings(options.steps, seed=options.seed, compiled=not options.no_compile)
    network = Trainer(shape, train, held_out, settings).run(report)
    export(network, tokenizer, options.folder)
    note = {
        "kind": options.kind,
        "steps": options.steps,
        "seed": options.seed,
        "train_tokens": len(train),
        "seconds": round(time.perf_counter() - started),
        "torch": str(torch.__version__),
        "sources": [
            {"name": source.name, "version": source.version, "licence": source.licence}
            for source in sources
        ],
    }
    (options.folder / "training.json").write_text(json.dumps(note, indent=2) + "\n")


if __name__ == "__main__":
    main()
