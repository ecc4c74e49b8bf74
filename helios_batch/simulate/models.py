"""The models of the paper: their sizes, and what it says of their exits (no torch)."""

from __future__ import annotations

from dataclasses import dataclass

from helios_batch.models.config import DecoderConfig, LayerKind, Norm, Rotary

THRESHOLD = 0.8
"""The confidence to which the shares of sure tokens belong."""
AGREES_SURE = 0.97
"""Of tokens that an exit is sure of, those at which it says what full depth says (assumed)."""


@dataclass(frozen=True)
class SimulatedModel:
    """A model with exits.

    Args:
        name: of the checkpoint.
        config: its sizes, from its public config.json.
        depths: layers after which it may be left, shallow first and full depth last.
        sure: by depth, the share of tokens that are over `THRESHOLD` there.
        agrees: the share of the shallowest exit's tokens that full depth says too.
    """

    name: str
    config: DecoderConfig
    depths: tuple[int, ...]
    sure: tuple[float, ...]
    agrees: float

    @property
    def agrees_unsure(self) -> float:
        """The share among those tokens that the shallowest exit is not sure of."""
        return max(0.0, (self.agrees - AGREES_SURE * self.sure[0]) / (1 - self.sure[0]))


def _opt(hidden: int, heads: int, layers: int) -> DecoderConfig:
    return DecoderConfig(
        architecture="opt",
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=4 * hidden,
        vocab_size=50272,
        context_length=2048,
        norm=Norm("layer", 1e-5),
        activation="relu",
        gated=False,
        attention_scale=(hidden // heads) ** -0.5,
        layers=(LayerKind(None, None),) * layers,
        tied_head=True,
        qkv_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        position_offset=2,
    )


def _llama(inner: int, layers: int, context: int, theta: float) -> DecoderConfig:
    return DecoderConfig(
        architecture="llama",
        hidden_size=8192,
        num_heads=64,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=inner,
        vocab_size=32000,
        context_length=context,
        norm=Norm("rms", 1e-5),
        activation="silu",
        gated=True,
        attention_scale=128**-0.5,
        layers=(LayerKind(None, Rotary(theta)),) * layers,
        tied_head=False,
    )


# The paper gives: 74 % of OPT-1.3B's tokens leave by layer 6; of the others, 57 % by layer 9 of
# OPT-6.7B; 92 % early in all; 85 % agreement of OPT-6.7B's layer 9 with its layer 32, 90 % of
# CodeLlama-34B's layer 16. Assumed are the second exits, whose shares are such that 92 % leave
# early; that 72 % leave by layer 9 of OPT-6.7B, which its two throughput ratios suggest (2.13 /
# 1.48, for time in proportion to layers); and that OPT-1.3B agrees as much as OPT-6.7B.
OPT_SMALL = SimulatedModel(
    "OPT-1.3B", _opt(2048, 32, 24), (6, 12, 24), (0.74, 0.79, 0.95), agrees=0.85
)
OPT_LARGE = SimulatedModel(
    "OPT-6.7B", _opt(4096, 32, 32), (9, 16, 32), (0.72, 0.775, 0.95), agrees=0.85
)
CODELLAMA = SimulatedModel(
    "CodeLlama-34B", _llama(22016, 48, 16384, 1e6), (16, 48), (0.8, 0.95), agrees=0.9
)
LLAMA2 = SimulatedModel(
    "Llama2-70B", _llama(28672, 80, 4096, 1e4), (27, 80), (0.8, 0.95), agrees=0.85
)
LIKENESS = 0.3326
"""Correlation of how hard a token is for two models: with it, 57 % of the tokens that OPT-1.3B is
not sure of leave OPT-6.7B at its layer 9 (a bivariate normal with the shares above)."""
