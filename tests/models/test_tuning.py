"""Tuning's parts: hidden states on disk, the closed form, training, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helios_batch.engine.device import resolve
from helios_batch.models.decoder import Decoder
from helios_batch.models.exits.assemble import assemble
from helios_batch.models.exits.metadata import ExitMetadata
from helios_batch.models.folder import open_model
from helios_batch.models.tuning.bridge import fit_bridge
from helios_batch.models.tuning.measure import (
    TEMPERATURES,
    Judged,
    agreement,
    calibration_error,
    fit_temperature,
    judge,
    summarize,
)
from helios_batch.models.tuning.start import starting_tensors
from helios_batch.models.tuning.states import TOP, StateCache, Text, batches
from helios_batch.models.tuning.train import Trainer, TrainSettings, exit_decoder
from helios_batch.spec import ResourceSpec
from helios_batch.tune.teacher import load_decoder
from tests.support.tiny import VOCABULARY

HIDDEN, LAYERS = 192, 4
FULL = [1, 2, 3, LAYERS]


def random_texts(count: int = 24, seed: int = 0) -> list[Text]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 40, (count,), generator=generator).tolist()
    return [
        Text(torch.randint(1, VOCABULARY, (n,), generator=generator).tolist(), 1 + n // 3)
        for n in lengths
    ]


@pytest.fixture(scope="module")
def decoder(tiny: Path) -> Decoder:
    """The tiny model at full depth in float32."""
    return load_decoder(open_model(str(tiny)), resolve(ResourceSpec(dtype="float32")))


@pytest.fixture(scope="module")
def cache(decoder: Decoder, tmp_path_factory: pytest.TempPathFactory) -> StateCache:
    """Hidden states of random texts after each layer."""
    folder = tmp_path_factory.mktemp("states")
    found = StateCache(folder, random_texts(), FULL, HIDDEN, 1 << 30)
    found.write(decoder, lambda tokens: None)
    return found


def metadata(kind: str, depth: int, tail: tuple[int, ...] = (), own: int = 0) -> ExitMetadata:
    return ExitMetadata(kind, "0", "tiny", LAYERS, depth, tail=tail, own_layers=own)


@torch.inference_mode()
def test_states_are_transformers_states(cache: StateCache, reference: Any) -> None:
    """Hidden states and likely next tokens of padded texts are those of each text alone."""
    batch = cache.read([0, 5, 9], FULL)
    for row, index in enumerate([0, 5, 9]):
        tokens = torch.tensor([list(cache.texts[index].tokens)])
        out = reference(tokens, output_hidden_states=True)
        count = tokens.shape[1]
        for layer in (1, 2, 3):
            found = batch.hidden[layer][row, :count].float()
            torch.testing.assert_close(found, out.hidden_states[layer][0], atol=0.02, rtol=0.01)
        expected = out.logits[0].log_softmax(-1).topk(TOP)
        assert torch.equal(batch.top_tokens[row, :count], expected.indices)
        torch.testing.assert_close(
            batch.top_logprobs[row, :count], expected.values, atol=0.01, rtol=0.01
        )


def test_writing_goes_on_where_it_was_interrupted(decoder: Decoder, tmp_path: Path) -> None:
    """An interruption between steps costs nothing that was written; the result is the same."""

    class StopError(Exception):
        pass

    def stop(tokens: int) -> None:
        raise StopError

    texts = random_texts(400)
    whole = StateCache(tmp_path / "whole", texts, FULL, HIDDEN, 1 << 30)
    whole.write(decoder, lambda tokens: None)
    parts = StateCache(tmp_path / "parts", texts, FULL, HIDDEN, 1 << 30)
    with pytest.raises(StopError):
        parts.write(decoder, stop)
    parts.write(decoder, lambda tokens: None)
    for file in ("hidden-2.bin", "top-tokens.bin"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()


def test_disk_is_bounded(tmp_path: Path) -> None:
    """Texts that don't fit into the bytes given are left out, from the end."""
    texts = random_texts(100)
    bounded = StateCache(tmp_path, texts, FULL, HIDDEN, 400 * (HIDDEN * 2 * 4 + TOP * 6))
    assert 0 < bounded.tokens <= 400
    assert bounded.texts == texts[: len(bounded.texts)]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 200))
def test_batches_hold_every_text_once(lengths: Sequence[int], tokens: int) -> None:
    """Every text is in one batch, and no batch of several is larger than asked."""
    groups = batches(lengths, tokens)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= tokens


def test_the_bridge_finds_an_affine_map(cache: StateCache, decoder: Decoder) -> None:
    """Fitted to its own source, the bridge is the identity; to another layer, near its target."""
    every = range(len(cache.texts))
    same = fit_bridge(cache, every, 2, 2)
    torch.testing.assert_close(same.weight, torch.eye(HIDDEN), atol=0.05, rtol=0)
    bridge = fit_bridge(cache, every, 1, 3)
    assert bridge.bias is not None
    batch = cache.read(list(every), [1, 3])
    x, y = (batch.hidden[layer][batch.texts.within].float() for layer in (1, 3))
    left = (x @ bridge.weight.T + bridge.bias - y).square().sum()
    assert left < 0.5 * (x - y).square().sum()


@pytest.mark.parametrize(
    ("wanted", "adapt"),
    [
        (metadata("norm", 2), 0),
        (metadata("bridge", 1, tail=(2, 3)), 0),
        (metadata("bridge", 2, tail=(3,)), 1),
        (metadata("mlp", 2), 0),
        (metadata("layer:1", 2, own=1), 0),
    ],
    ids=lambda value: value.kind if isinstance(value, ExitMetadata) else f"adapt-{value}",
)
def test_training_learns_and_is_repeatable(
    wanted: ExitMetadata, adapt: int, cache: StateCache, decoder: Decoder
) -> None:
    """The loss of one batch falls step by step; the same seed gives the same tensors."""
    every = list(range(len(cache.texts)))

    def train() -> tuple[list[float], dict[str, torch.Tensor]]:
        start = starting_tensors(wanted, decoder.weights, cache, every, 4, adapt, seed=0)
        layers = dict(enumerate(decoder.weights.layers))
        assert exit_decoder(decoder, start, wanted, layers).depth == adapt
        settings = TrainSettings(warmup_steps=1, bridge_rate=3e-3, learning_rate=3e-3)
        trainer = Trainer(decoder, layers, wanted, start, cache, settings)
        losses = [trainer.step(every) for _ in range(12)]
        return losses, trainer.tensors()

    losses, tensors = train()
    assert losses[-1] < losses[0]
    again, same = train()
    assert again == losses
    changed = {name.split(".")[1] for name in tensors if name.startswith("delta.")}
    assert ("1" in changed) == bool(adapt)
    assert all(torch.equal(tensors[name], same[name]) for name in tensors)


def test_training_goes_on_from_a_saved_state(cache: StateCache, decoder: Decoder) -> None:
    """Six steps are three, saved and restored into a fresh trainer, and three more."""
    wanted, every = metadata("bridge", 1, tail=(3,)), list(range(len(cache.texts)))
    layers = dict(enumerate(decoder.weights.layers))
    start = starting_tensors(wanted, decoder.weights, cache, every, 4, 0, seed=0)
    first, second, whole = (
        Trainer(decoder, layers, wanted, start, cache, TrainSettings()) for _ in range(3)
    )
    for _ in range(6):
        whole.step(every)
    for _ in range(3):
        first.step(every)
    second.restore(first.state())
    for _ in range(3):
        second.step(every)
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, second.tensors()[name])


def test_an_exit_that_is_the_model_agrees_with_it(cache: StateCache, decoder: Decoder) -> None:
    """A bridge that is the identity into the rest of the layers says all that full depth says."""
    wanted = metadata("bridge", 2, tail=(2, 3))
    tensors = {"bridge.weight": torch.eye(HIDDEN), "bridge.bias": torch.zeros(HIDDEN)}
    layers = dict(enumerate(decoder.weights.layers))
    exit_ = exit_decoder(decoder, tensors, wanted, layers)
    every = range(len(cache.texts))
    # hidden states were rounded to bfloat16 on disk
    assert agreement(exit_, 2, cache, every) > 0.95
    judged = judge(exit_, 2, cache, every)
    share = float(judged.agrees.double().mean())
    assert share == pytest.approx(agreement(exit_, 2, cache, every))
    assert assemble(tensors, wanted, decoder.config, layers).adapted == {}


def test_temperature_and_calibration() -> None:
    """Confidence that was made too sure by a known temperature is set right, and measured so."""
    generator = torch.Generator().manual_seed(1)
    true = torch.rand(4000, generator=generator) * 0.6 + 0.4
    agrees = torch.rand(4000, generator=generator) < true
    odds = (true / (1 - true)).log() * 2.0
    confidence = torch.stack([(odds / t).sigmoid() for t in TEMPERATURES], dim=-1)
    judged = Judged(agrees, confidence)
    temperature = fit_temperature(judged)
    assert temperature == pytest.approx(2.0, rel=0.15)
    right = summarize(judged, temperature)
    assert right.ece < 0.03
    assert calibration_error(odds.sigmoid().double(), agrees.double()) > 0.05
    assert right.agreement == pytest.approx(float(agrees.float().mean()))
    assert right.coverage["0.9"] == pytest.approx(
        float((confidence[:, TEMPERATURES.index(temperature)] > 0.9).float().mean())
    )


def test_calibration_error_of_known_bins() -> None:
    """Half the tokens 0.2 too sure, half right: the error is 0.1."""
    confidence = torch.tensor([0.75] * 4 + [1.0] * 4).double()
    agrees = torch.tensor([1, 1, 0, 0.2] + [1] * 4).double()
    assert calibration_error(confidence, agrees) == pytest.approx(0.1)
