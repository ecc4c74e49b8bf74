"""A tuning from start to end: sample, full depth, hidden states, exits, measurements."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace

from helios_batch.engine.device import resolve
from helios_batch.errors import ResourceError, SpecError
from helios_batch.job import Job, prepare
from helios_batch.loading import load_engine
from helios_batch.local import Observer, run_local
from helios_batch.models.decoder import Decoder
from helios_batch.models.exits.file import find_exits, write_exit
from helios_batch.models.exits.metadata import ExitMetadata
from helios_batch.models.folder import ModelFolder, open_model
from helios_batch.models.tokenizer import Tokenizer
from helios_batch.models.tuning.start import target_layer
from helios_batch.models.tuning.states import StateCache, Text
from helios_batch.models.tuning.train import TrainSettings
from helios_batch.spec import digest
from helios_batch.tune.fit import ExitMaker, Splits, Watcher
from helios_batch.tune.labels import measure_labels
from helios_batch.tune.record import claim, write_record
from helios_batch.tune.request import TuneRequest
from helios_batch.tune.result import ExitReport, TuneResult
from helios_batch.tune.sample import Sampled, sample
from helios_batch.tune.teacher import load_decoder, matrix_rate
from helios_batch.tune.texts import written_texts

_WORK = "_work"
_WATCH_SHARE = 0.125
_LEAST_TEXTS = 4
_LEAST_TRAIN_SECONDS = 5.0
_ENDLESS = 24 * 3600.0
_LABEL_PROMPT_WEIGHT = 0.02


def tune(request: TuneRequest, observer: Observer, watcher: Watcher) -> TuneResult:
    """Make exits on a sample of a job's own rows; a second call goes on where one was interrupted.

    A finished tuning is not made again; its result is returned.

    Args:
        request: what to make.
        observer: watches the jobs at full depth.
        watcher: watches caching and training.

    Raises:
        UsageError: model, data or request are not usable, or the folder holds another tuning.
        JobError: reading or writing failed.
    """
    began, seconds = time.perf_counter(), {}
    model = open_model(request.model)
    request.check(model)
    request.output.mkdir(parents=True, exist_ok=True)
    share = -(-request.rows // len(request.data))
    sampled = [sample(request, source, share, i) for i, source in enumerate(request.data)]
    label = _are_labels(sampled)
    known = {depth: e for depth, e in find_exits(model).items() if depth in request.exits}
    sources = [source.digest for source in sampled]
    starts = [known[depth].digest for depth in sorted(known)]
    fingerprint = digest(request.identity(sources, model) | {"starts": starts})
    finished = claim(request.output, fingerprint)
    if finished is not None:
        return finished

    jobs = [(prepare(source.learn), prepare(source.held_out)) for source in sampled]
    learn, held_out = _texts(jobs, observer)
    random.Random(request.seed).shuffle(learn)
    seconds["full depth"] = time.perf_counter() - began

    work = request.output / _WORK
    resources = resolve(request.resources)
    decoder = load_decoder(model, resources)
    metadata = [_metadata(request, model, depth, fingerprint) for depth in sorted(request.exits)]
    layers = {model.config.num_layers, *request.exits, *map(target_layer, metadata)}
    layers |= {depth - request.adapt for depth in request.exits}
    cache = _hidden_states(request, decoder, sorted(layers), held_out, learn, watcher)
    seconds["hidden states"] = time.perf_counter() - began - sum(seconds.values())

    splits = _split(len(held_out), len(cache.texts))
    settings = TrainSettings(seed=request.seed)
    if label:
        settings = replace(settings, prompt_weight=_LABEL_PROMPT_WEIGHT)
    maker = ExitMaker(decoder, cache, splits, settings, request.rank, request.adapt, known, watcher)
    total = request.minutes * 60 if request.minutes else _ENDLESS
    reports = []
    for number, wanted in enumerate(metadata):
        left = total - (time.perf_counter() - began)
        budget = max(_LEAST_TRAIN_SECONDS, left / (len(metadata) - number))
        made = maker.make(wanted, budget, work / f"exit-{wanted.depth:02d}.pt")
        path = request.output / f"exit-{wanted.depth:02d}.safetensors"
        write_exit(path, made.metadata, made.tensors)
        found, measured = made.metadata, None
        if label:
            found, measured = measure_labels(sampled, found, path, observer)
            write_exit(path, found, made.tensors)
        size = path.stat().st_size
        reports.append(
            ExitReport(found, path, size, made.curve, made.ended, made.flops_per_second, measured)
        )
    seconds["exits"] = time.perf_counter() - began - sum(seconds.values())
    result = TuneResult(
        model=model.name,
        output=request.output,
        fingerprint=fingerprint,
        learned_texts=len(splits.learn),
        learned_tokens=sum(len(cache.texts[i].tokens) for i in splits.learn),
        held_out_tokens=reports[0].metadata.measured["held_out"].tokens,
        matrix_flops_per_second=matrix_rate(resources),
        exits=tuple(reports),
        seconds={phase: round(value, 1) for phase, value in seconds.items()},
    )
    write_record(result)
    shutil.rmtree(work, ignore_errors=True)
    return result


def _hidden_states(
    request: TuneRequest,
    decoder: Decoder,
    layers: list[int],
    held_out: list[Text],
    learn: list[Text],
    watcher: Watcher,
) -> StateCache:
    """Keep the hidden states before some layers on disk; what was interrupted goes on."""
    folder, width = request.output / _WORK / "states", decoder.config.hidden_size
    cache = StateCache(folder, [*held_out, *learn], layers, width, request.disk)
    _check_texts(request, cache, len(held_out))
    watcher.phase("hidden states", cache.tokens)
    cache.write(decoder, lambda tokens: watcher.advance(tokens, f"{tokens:,} tokens"))
    return cache


def _are_labels(sampled: Sequence[Sampled]) -> bool:
    types = {source.learn.task.type for source in sampled}
    if len(types) > 1:
        raise SpecError(
            "label and generation jobs are mixed",
            where="--data",
            fix="make exits for one kind of job at a time",
        )
    return types == {"label"}


def _check_texts(request: TuneRequest, cache: StateCache, held_out: int) -> None:
    """Check that there is something to learn from and to measure by."""
    if held_out and len(cache.texts) - held_out >= _LEAST_TEXTS:
        return
    raise ResourceError(
        f"{len(cache.texts)} texts that full depth wrote fit {request.disk:,} bytes of disk, with "
        f"{held_out} that are held out before them: too few to learn from",
        where=str(request.output),
        fix="look at the error column of the parts there; give more rows, or more --disk",
    )


def _texts(jobs: Sequence[tuple[Job, Job]], observer: Observer) -> tuple[list[Text], list[Text]]:
    """Run the jobs at full depth; return the texts to learn from, and those held out."""
    for pair in jobs:
        for job in pair:
            run_local(job, load_engine, observer)
    tokenizer = Tokenizer(jobs[0][0].model.path, jobs[0][0].created)
    learn, held_out = (
        [text for pair in jobs for text in written_texts(pair[i], tokenizer)] for i in (0, 1)
    )
    return learn, held_out


def _metadata(
    request: TuneRequest, model: ModelFolder, depth: int, fingerprint: str
) -> ExitMetadata:
    layers = model.config.num_layers
    own = int(request.kind.removeprefix("layer:")) if request.kind.startswith("layer:") else 0
    return ExitMetadata(
        kind=request.kind,
        backbone=model.digest,
        model=model.name,
        num_layers=layers,
        depth=depth,
        tail=tuple(range(layers - request.tail, layers)) if request.kind == "bridge" else (),
        own_layers=own,
        training={
            "data": fingerprint,
            "rows": request.rows,
            "seed": request.seed,
            "rank": request.rank,
            "adapt": request.adapt,
        },
    )


def _split(held_out: int, texts: int) -> Splits:
    """Texts held out stand first in the cache; an eighth of the others is to watch by."""
    watch = max(1, int((texts - held_out) * _WATCH_SHARE))
    return Splits(
        learn=range(held_out + watch, texts),
        watch=range(held_out, held_out + watch),
        held_out=range(held_out),
    )
