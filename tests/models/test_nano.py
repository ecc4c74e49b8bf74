"""The two shipped models: they are what their cards say, and their training repeats itself."""

from __future__ import annotations

import ast
from email.message import Message
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from helios_batch.models.checkpoint import Checkpoint
from helios_batch.models.decoder import Decoder
from helios_batch.models.folder import open_model
from helios_batch.models.nano import objective
from helios_batch.models.nano.corpus import Source, build_corpus
from helios_batch.models.nano.depths import counted, load, read, repeated_share, write
from helios_batch.models.nano.export import export
from helios_batch.models.nano.licences import licence_of
from helios_batch.models.nano.network import Shape, output_logits, rotations, run_layer
from helios_batch.models.nano.text import code_documents, docs_documents
from helios_batch.models.nano.tokenizer import encode, train_tokenizer
from helios_batch.models.nano.train import Settings, Trainer
from helios_batch.models.packs import PACKS, pack_folder
from helios_batch.models.tuning.attention import PaddedAttention
from helios_batch.models.weights import GreedyLoader

NAMES = ["helios-nano-docs", "helios-nano-code"]
TINY = Shape(
    vocab_size=512,
    hidden_size=64,
    num_layers=3,
    num_heads=2,
    num_kv_heads=1,
    intermediate_size=64,
)
# text of this project: what the tests measure on must not change with the Python they run on
PROMPTS = {
    "helios-nano-docs": [
        "Return a new list containing all items from the iterable in",
        "Read up to size bytes from the object and return them. As a convenience,",
        "Create a new thread. The optional arguments are the name of the",
        "Raise ValueError if the value is not",
        "Parse the given string and return a dictionary of",
        "The number of seconds to wait before",
        "Return True if the two objects are",
        "Convert the array to a list of",
        "Called when the connection is closed by the",
        "This function is deprecated. Use",
        "Parameters\n----------\nx : array_like\n    The input",
        "Returns\n-------\nDataFrame\n    The",
        "A base class for all of the",
        "Write the message to the file, with a",
        "If the argument is None, the default",
        "Examples\n--------\n>>> ",
    ],
    "helios-nano-code": [
        "def __init__(self, name, value=None):\n    self.name =",
        "    for key, value in self.items():\n        if",
        "import os\nimport sys\n\nfrom",
        "class Parser(object):\n    def parse(self, text):\n        if not text:\n",
        "    try:\n        import",
        "def read(self, size):\n    data =",
        "    with open(path) as file:\n",
        "        raise TypeError(",
        "    return [x for x in",
        "@property\ndef shape(self):\n",
        "if __name__ == '__main__':\n",
        "    assert isinstance(",
        "def main(argv):\n    parser =",
        "        self._lock = threading",
        "    while True:\n        try:\n",
        "    result = {}\n    for name in",
    ],
}


def decoder_of(name: str) -> Decoder:
    model = open_model(name)
    with Checkpoint(model.path) as checkpoint:
        names = model.architecture.tensor_names
        device = torch.device("cpu")
        loader = GreedyLoader(model.config, names, checkpoint, torch.float32, device)
        return Decoder(model.config, loader.load(model.config.num_layers))


@pytest.mark.parametrize("name", NAMES)
def test_shipped_folders(name: str) -> None:
    """Each is a whole model under 10 MB in all, with the shape that the pack says."""
    folder = pack_folder(PACKS[name])
    assert sum(file.stat().st_size for file in folder.iterdir()) < 10_000_000
    model = open_model(name)
    assert model.config.num_layers == PACKS[name].num_layers == 12
    assert model.eos_tokens == {0}
    assert model.native_exits
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == model.config.vocab_size == 4096
    text = "def f(x):\n    return 'ä€'  # done\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    other = pack_folder(PACKS[next(other for other in NAMES if other != name)])
    assert (folder / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_the_decoder_equals_transformers(name: str) -> None:
    """This project's decoder gives transformers' logits at full depth, in float32."""
    decoder = decoder_of(name)
    tokens = torch.randint(0, 4096, (2, 24), generator=torch.Generator().manual_seed(0))
    attention = PaddedAttention(decoder.config, decoder.kinds, 2, 24)
    hidden = decoder.forward(tokens.flatten(), torch.arange(24).repeat(2), attention)
    found = decoder.final_norm(hidden) @ decoder.weights.head.T
    expected = load(pack_folder(PACKS[name]))(tokens).logits.flatten(0, 1)
    assert (found - expected).abs().max() < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_layer_six_agrees_with_the_last(name: str) -> None:
    """On what a model writes greedily, layer 6 of 12 gives the last layer's token for 80 %."""
    folder = pack_folder(PACKS[name])
    model, tokenizer = load(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    agreeing = total = 0
    for text in PROMPTS[name]:
        prompt = torch.tensor([tokenizer.encode(text).ids])
        depths = read(model, write(model, prompt, 32), prompt.shape[1])
        agreeing += int(depths.agree[5].sum())
        total += depths.agree.shape[1]
    print(f"{agreeing} of {total}")
    assert total > 400
    assert agreeing / total >= 0.8


def test_documents() -> None:
    """Docstrings go to the one kind, cleaned; the code without them to the other."""
    body = "Say something that is long enough to be a document of its own in this whole corpus."
    text = f'"""{body}\n\n    Indented."""\nimport os\n\n\n\ndef f():\n    """{body}"""\n'
    text += "    return os.name  # a comment of the code stays with it, as it is no docstring\n"
    assert list(docs_documents(text, ".py")) == [f"{body}\n\nIndented.\n", f"{body}\n"]
    [code] = code_documents(text, ".py")
    assert body not in code
    assert "# a comment" in code
    ast.parse(code)
    assert list(docs_documents("# Title\n", ".md")) == ["# Title\n"]
    assert not list(code_documents("# Title\n", ".md"))
    assert not list(docs_documents("def broken(:", ".py"))


def test_the_split_is_disjoint_and_repeats(tmp_path: Path) -> None:
    """Held-out documents are in no training file, wherever the files lie."""

    def written(folder: Path) -> Source:
        folder.mkdir()
        for index in range(120):
            text = f'"""Document {index % 100}: {"words " * 20}"""\nx = {index}\n'
            (folder / f"{index}.py").write_text(text)
        return Source("some", "1", "MIT", tuple(folder.iterdir()))

    corpus = build_corpus("docs", [written(tmp_path / "a")])
    assert corpus == build_corpus("docs", [written(tmp_path / "b")])
    assert corpus.held_out
    assert not set(corpus.train) & set(corpus.held_out)
    assert len(corpus.train) + len(corpus.held_out) == 100


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ({"License-Expression": "MIT"}, "MIT"),
        ({"License-Expression": "Apache-2.0 OR BSD-2-Clause"}, "Apache-2.0 OR BSD-2-Clause"),
        ({"License-Expression": "MIT AND MPL-2.0"}, None),
        ({"License-Expression": "Apache-2.0 WITH LLVM-exception"}, None),
        ({"License": "BSD"}, "BSD"),
        ({"License": "GPL"}, None),
        ({"Classifier": "License :: OSI Approved :: MIT License"}, "MIT"),
        ({"Classifier": "License :: OSI Approved :: GNU General Public License"}, None),
        ({}, None),
    ],
)
def test_licences(fields: dict[str, str], licence: str | None) -> None:
    """Only packages that state nothing but free and permissive licences are taken."""
    about = Message()
    for name, value in fields.items():
        about[name] = value
    assert licence_of(about) == licence


def test_training_repeats_and_learns(tmp_path: Path) -> None:
    """One seed gives one network; its loss falls; it runs alike in transformers when exported."""
    documents = [f"line {n}: the cat sat on the mat and looked at it\n" * 4 for n in range(40)]
    tokenizer = train_tokenizer([documents], TINY.vocab_size, 0)
    tokens = encode(tokenizer, documents)
    settings = Settings(
        12, batch=2, length=32, warm_up=2, dtype=torch.float32, compiled=False, log_every=12
    )
    lines: list[str] = []
    trainers = [Trainer(TINY, tokens, tokens, settings) for _ in range(2)]
    losses = [trainers[0].step(step) for step in range(12)]
    again = trainers[1].run(lines.append)
    assert losses[-1] < losses[0] - 0.3
    for one, two in zip(trainers[0].network.tensors(), again.tensors(), strict=True):
        assert torch.equal(one, two)
    assert "tokens/s" in lines[0]

    export(again, tokenizer, tmp_path / "model")
    model = load(tmp_path / "model")
    hidden = torch.nn.functional.embedding(torch.arange(20)[None], again.embedding)
    for layer in again.layers:
        hidden = run_layer(TINY, torch.float32, hidden, *rotations(TINY, 20), layer.tensors())
    expected = output_logits(torch.float32, hidden, again.final_norm, again.embedding)
    # the export rounds to bfloat16
    assert (model(torch.arange(20)[None]).logits - expected).abs().max() < 0.05


def test_the_objective() -> None:
    """Every exit is trained in some step, deeper ones weigh more; dropout grows from nothing."""
    depths = {d for step in range(objective.ROTATION) for d in objective.exits_to_train(step, 12)}
    assert depths == set(range(1, 12))
    weights = objective.exit_weights([3, 6, 9], 12)
    assert list(weights.values()) == sorted(weights.values())
    assert sum(weights.values()) == pytest.approx(1)
    rates = [objective.dropout_rate(layer, 12) for layer in range(12)]
    assert rates[0] == 0
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(objective.LARGEST_DROPOUT)


def test_what_is_counted() -> None:
    """Tokens count up to the first end token; repeats are told by the tokens before them."""
    tokens = torch.tensor([[5, 6, 7, 0, 0, 0], [5, 6, 5, 6, 5, 6]])
    assert counted(tokens, 2).tolist() == [[True, True, False, False], [True] * 4]
    assert repeated_share(tokens, 2, span=2) == pytest.approx(3 / 6)
    assert np.array_equal(encode(train_tokenizer([["ab"]], 300, 0), [""]), [0])
