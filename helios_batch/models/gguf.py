"""Converting a GGUF file to a Hugging Face style folder of safetensors."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write `gguf`'s model, config and tokenizer to `folder`, weights dequantized to float32.

    float32 holds the dequantized values exactly, so that the folder gives what transformers gives
    when it reads the GGUF itself.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # transformers draws progress bars there
    with contextlib.redirect_stderr(io.StringIO()):
        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**source)
    folder.mkdir()
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
