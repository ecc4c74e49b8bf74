"""The exits that come with smollm2-135m: small, its own, and as good as their cards say."""

from __future__ import annotations

from pathlib import Path

import pytest

from helios_batch.engine.device import resolve
from helios_batch.models.checkpoint import Checkpoint
from helios_batch.models.decoder import Decoder
from helios_batch.models.exits.file import ExitFile, find_exits
from helios_batch.models.exits.load import load_exit
from helios_batch.models.folder import ModelFolder, open_model
from helios_batch.models.tuning.measure import judge, summarize
from helios_batch.models.tuning.states import StateCache, Text
from helios_batch.models.weights import GreedyLoader
from helios_batch.records import Prompt
from helios_batch.spec import ResourceSpec, SamplingSpec
from helios_batch.tune.teacher import load_decoder
from tests.support.engines import make_engine

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(900)]

# topics that are in none of the prompts that the exits were made on
TOPICS = [
    "tea",
    "submarines",
    "windmills",
    "the violin",
    "penguins",
    "snow",
    "postage stamps",
    "salt",
]
MAX_TOKENS = 40
LEAST = {10: 0.33, 15: 0.40, 20: 0.48}


@pytest.fixture(scope="module")
def model(pack: Path) -> ModelFolder:
    """The pack, with its exits."""
    return open_model("smollm2-135m")


@pytest.fixture(scope="module")
def cache(model: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> StateCache:
    """What the model writes about the topics, and its hidden states."""
    engine = make_engine(model.path, dtype="float32", memory="2GiB", sequence_tokens=128)
    prompts = [
        Prompt(row, ({"role": "user", "content": f"Write a short paragraph about {topic}."},))
        for row, topic in enumerate(TOPICS)
    ]
    written = engine.generate(prompts, SamplingSpec(max_tokens=MAX_TOKENS))
    encoded = engine.tokenizer.encode([prompt.content for prompt in prompts])
    texts = [
        Text([*tokens, *generation.token_ids], len(tokens))
        for tokens, generation in zip(encoded, written, strict=True)
        if isinstance(tokens, list)
    ]
    del engine
    depths = [*find_exits(model), model.config.num_layers]
    found = StateCache(
        tmp_path_factory.mktemp("states"), texts, depths, model.config.hidden_size, 1 << 30
    )
    resources = resolve(ResourceSpec(dtype="float32"))
    found.write(load_decoder(model, resources), lambda tokens: None)
    return found


def test_they_are_small(model: ModelFolder) -> None:
    """Three depths or more, in 16 MB together."""
    exits = find_exits(model)
    assert sorted(exits) == [10, 15, 20]
    assert sum(exit_file.path.stat().st_size for exit_file in exits.values()) <= 16_000_000


def exit_of(model: ModelFolder, exit_file: ExitFile) -> Decoder:
    """Load an exit in float32, and drop the layers before it."""
    resources = resolve(ResourceSpec(dtype="float32"))
    with Checkpoint(model.path) as checkpoint:
        names = model.architecture.tensor_names
        loader = GreedyLoader(model.config, names, checkpoint, resources.dtype, resources.device)
        weights = loader.load(exit_file.depth)
        found = load_exit(exit_file, model.config, loader, weights)
    loader.truncate(weights, 0)
    return Decoder(model.config, weights, found)


def test_they_agree_as_their_card_says(model: ModelFolder, cache: StateCache) -> None:
    """On topics that no exit was made on, agreement is what the card says of such paragraphs.

    They are harder than the mix that the exits' metadata was measured on: 39, 45 and 53 %.
    """
    for depth, exit_file in sorted(find_exits(model).items()):
        judged = judge(exit_of(model, exit_file), depth, cache, range(len(cache.texts)))
        share = float(judged.agrees.double().mean())
        stated = exit_file.metadata.measured["held_out"]
        print(f"exit {depth}: {share:.1%} of {len(judged.agrees)} tokens agree; {stated}")
        assert share > LEAST[depth]
        assert summarize(judged, exit_file.metadata.temperature).ece < 0.12
