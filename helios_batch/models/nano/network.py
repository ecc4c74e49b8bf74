"""The network in training: a Llama decoder as plain functions over a dictionary of tensors.

Fused projections and functions small enough for `torch.compile`; `checkpoint_tensors` gives the
tensors of a `LlamaForCausalLM`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

EPSILON = 1e-5
THETA = 10_000.0


@dataclass(frozen=True)
class Shape:
    """Sizes of the network. The output head is the embedding."""

    vocab_size: int = 4096
    hidden_size: int = 192
    num_layers: int = 12
    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 32
    intermediate_size: int = 384
    context_length: int = 512


@dataclass(frozen=True)
class Layer:
    """One layer's parameters; matrices are (out, in)."""

    attention_norm: torch.Tensor
    qkv: torch.Tensor
    attention_out: torch.Tensor
    mlp_norm: torch.Tensor
    mlp_in: torch.Tensor
    mlp_out: torch.Tensor

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Return the parameters in the order of the fields."""
        return (
            *(self.attention_norm, self.qkv, self.attention_out),
            *(self.mlp_norm, self.mlp_in, self.mlp_out),
        )


@dataclass(frozen=True)
class Network:
    """All parameters of a model in training, in float32."""

    shape: Shape
    embedding: torch.Tensor
    final_norm: torch.Tensor
    layers: tuple[Layer, ...]

    def tensors(self) -> list[torch.Tensor]:
        """Return every parameter once."""
        inner = [tensor for layer in self.layers for tensor in layer.tensors()]
        return [self.embedding, self.final_norm, *inner]


def new_network(shape: Shape, seed: int) -> Network:
    """Return a network of random weights; what writes to the residual stream is scaled down."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int, scale: float = 1.0) -> torch.Tensor:
        return (
            torch.empty(rows, columns)
            .normal_(0, scale * columns**-0.5, generator=generator)
            .requires_grad_()
        )

    def ones() -> torch.Tensor:
        return torch.ones(shape.hidden_size, requires_grad=True)

    width, heads = shape.hidden_size, shape.num_heads * shape.head_dim
    qkv = heads + 2 * shape.num_kv_heads * shape.head_dim
    damped = (2 * shape.num_layers) ** -0.5
    layers = tuple(
        Layer(
            ones(),
            matrix(qkv, width),
            matrix(width, heads, damped),
            ones(),
            matrix(2 * shape.intermediate_size, width),
            matrix(width, shape.intermediate_size, damped),
        )
        for _ in range(shape.num_layers)
    )
    embedding = torch.empty(shape.vocab_size, width).normal_(0, 0.02, generator=generator)
    return Network(shape, embedding.requires_grad_(), ones(), layers)


def rotations(shape: Shape, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines [length, head_dim] of the rotary embedding, halves repeated."""
    steps = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angles = torch.arange(length, dtype=torch.float32)[:, None] / THETA**steps
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Norm the last dimension of a float32 x."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON) * weight


def run_layer(
    shape: Shape,
    dtype: torch.dtype,
    hidden: torch.Tensor,
    cosine: torch.Tensor,
    sine: torch.Tensor,
    parameters: tuple[torch.Tensor, ...],
) -> torch.Tensor:
    """Return hidden [B, T, hidden_size] in float32 after one layer; products are in `dtype`."""
    attention_norm, qkv, attention_out, mlp_norm, mlp_in, mlp_out = parameters
    batch, length, _ = hidden.shape
    inner = F.linear(rms_norm(hidden, attention_norm).to(dtype), qkv.to(dtype))
    heads = inner.view(batch, length, -1, shape.head_dim)
    rotated = heads[:, :, : shape.num_heads + shape.num_kv_heads].float()
    first, second = rotated.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    rotated = (rotated * cosine[:, None] + turned * sine[:, None]).to(dtype)
    groups = shape.num_heads // shape.num_kv_heads
    query = rotated[:, :, : shape.num_heads].transpose(1, 2)
    key = rotated[:, :, shape.num_heads :].repeat_interleave(groups, dim=2).transpose(1, 2)
    value = heads[:, :, shape.num_heads + shape.num_kv_heads :]
    value = value.repeat_interleave(groups, dim=2).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    mixed = mixed.transpose(1, 2).reshape(batch, length, -1)
    hidden = hidden + F.linear(mixed, attention_out.to(dtype))
    inner = F.linear(rms_norm(hidden, mlp_norm).to(dtype), mlp_in.to(dtype))
    gate, up = inner.chunk(2, dim=-1)
    return hidden + F.linear(F.silu(gate) * up, mlp_out.to(dtype))


def output_logits(
    dtype: torch.dtype, hidden: torch.Tensor, final_norm: torch.Tensor, embedding: torch.Tensor
) -> torch.Tensor:
    """Return the logits of hidden [N, hidden_size], by the shared final norm and output head."""
    return F.linear(rms_norm(hidden, final_norm).to(dtype), embedding.to(dtype)).float()


def checkpoint_tensors(network: Network) -> dict[str, torch.Tensor]:
    """Return the parameters under the names of a `LlamaForCausalLM` with tied embeddings."""
    shape = network.shape
    heads, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    tensors = {
        "model.embed_tokens.weight": network.embedding,
        "model.norm.weight": network.final_norm,
    }
    for index, layer in enumerate(network.layers):
        query, key, value = layer.qkv.tensor_split([heads, heads + kv])
        gate, up = layer.mlp_in.chunk(2)
        named = {
            "input_layernorm": layer.attention_norm,
            "self_attn.q_proj": query,
            "self_attn.k_proj": key,
            "self_attn.v_proj": value,
            "self_attn.o_proj": layer.attention_out,
            "post_attention_layernorm": layer.mlp_norm,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": layer.mlp_out,
        }
        for name, tensor in named.items():
            tensors[f"model.layers.{index}.{name}.weight"] = tensor
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
