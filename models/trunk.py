"""The decoder: one file, one path, visible shapes. Llama-2 style, as in Emu3 (arXiv 2409.18869, section 2.2).

Legend: B batch, T tokens, D width, H query heads, G KV heads, E head size, F FFN size, V vocabulary, A axes.
It knows no recipe: what stands at a place comes in as vectors, what it may see as `attend`, where it stands as
`positions`. Which published trunks it can be: models/hf_layout.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, silu
from torch.utils.checkpoint import checkpoint

from models.attention import Attend
from models.flops import TrunkShape
from models.objectives import Head
from models.positions import rope_table, rotate

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
_INIT_STD = 0.02
_HEAD_NORM_EPS = 1e-5
"""Chameleon's, whatever the eps of its RMSNorms (transformers, ChameleonLayerNorm)."""

QkNorm = Literal["none", "rms", "layer"]
"""Of every query and key head before the rotation: RMSNorm shared by all heads (Qwen3), or LayerNorm with weights of
its own for each head (Chameleon, arXiv 2405.09818)."""
NormPlace = Literal["before", "after"]
"""x + f(norm(x)), or x + norm(f(x)) (Chameleon 34B, after Swin v2)."""


@dataclass(frozen=True, kw_only=True)
class TrunkConfig:
    """What, beside the weights, defines the decoder."""

    shape: TrunkShape
    vocabulary_size: int
    """V, rows of embedding and head."""
    rope_base: float = 1e6
    rope_sections: tuple[int, ...] = ()
    """Rotary frequencies of each axis of the positions, E/2 in all; empty: positions have one axis."""
    qk_norm: QkNorm = "none"
    norm: NormPlace = "before"
    qkv_bias: bool = False
    """Biases of queries, keys and values (Qwen2)."""
    tied: bool = False
    """One matrix for embedding and head (small Qwen2)."""
    dropout: float = 0.0
    """On the embedding, both residual branches and attention, 0 to 1."""
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.rope_sections and sum(self.rope_sections) != self.shape.head_dim // 2:
            raise ValueError(
                f"rope_sections {list(self.rope_sections)} do not add up to half of the head size, "
                f"{self.shape.head_dim // 2}"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TrunkConfig:
        """The inverse of `to_json`."""
        sections = tuple(data["rope_sections"])
        kwargs: dict[str, Any] = data | {"shape": TrunkShape(**data["shape"]), "rope_sections": sections}
        return cls(**kwargs)


class HeadNorm(nn.Module):
    """LayerNorm over each head's E numbers, with gain and shift of its own for every head."""

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, 1, head_dim))
        self.bias = nn.Parameter(torch.zeros(heads, 1, head_dim))

    def forward(self, x_BHTE: Tensor) -> Tensor:
        """(B, H, T, E) to (B, H, T, E)."""
        return layer_norm(x_BHTE, x_BHTE.shape[-1:], eps=_HEAD_NORM_EPS) * self.weight + self.bias


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        shape = config.shape
        self.heads, self.kv_heads, self.head_dim = shape.heads, shape.kv_heads, shape.head_dim
        self.dropout = config.dropout
        self.q = nn.Linear(shape.width, shape.heads * shape.head_dim, bias=config.qkv_bias)
        self.kv = nn.Linear(shape.width, 2 * shape.kv_heads * shape.head_dim, bias=config.qkv_bias)
        self.out = nn.Linear(shape.heads * shape.head_dim, shape.width, bias=False)
        self.q_norm, self.k_norm = (_head_norm(config, heads) for heads in (shape.heads, shape.kv_heads))

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], attend: Attend, layer: int) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        B, T, _ = x_BTD.shape
        q_BHTE = self.q(x_BTD).view(B, T, self.heads, self.head_dim).transpose(1, 2)
        k_BTGE, v_BTGE = self.kv(x_BTD).view(B, T, 2, self.kv_heads, self.head_dim).unbind(2)
        q_BHTE = rotate(self.q_norm(q_BHTE), rope)
        k_BGTE = rotate(self.k_norm(k_BTGE.transpose(1, 2)), rope)
        y_BHTE = attend(layer, q_BHTE, k_BGTE, v_BTGE.transpose(1, 2), self.dropout if self.training else 0.0)
        return self.out(y_BHTE.transpose(1, 2).reshape(B, T, -1))


def _head_norm(config: TrunkConfig, heads: int) -> nn.Module:
    if config.qk_norm == "layer":
        return HeadNorm(heads, config.shape.head_dim)
    return nn.RMSNorm(config.shape.head_dim, config.norm_eps) if config.qk_norm == "rms" else nn.Identity()


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        shape = config.shape
        self.gate_up = nn.Linear(shape.width, 2 * shape.ffn, bias=False)
        self.down = nn.Linear(shape.ffn, shape.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        gate_BTF, up_BTF = self.gate_up(x_BTD).chunk(2, dim=-1)
        return self.down(silu(gate_BTF) * up_BTF)


class Block(nn.Module):
    """Attention, then feed-forward, each a residual branch, normalised before or after."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.shape.width, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = nn.RMSNorm(config.shape.width, config.norm_eps)
        self.ffn = FeedForward(config)
        self.drop = nn.Dropout(config.dropout)
        self.after = config.norm == "after"

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], attend: Attend, layer: int) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        if self.after:
            x_BTD = x_BTD + self.drop(self.attention_norm(self.attention(x_BTD, rope, attend, layer)))
            return x_BTD + self.drop(self.ffn_norm(self.ffn(x_BTD)))
        x_BTD = x_BTD + self.drop(self.attention(self.attention_norm(x_BTD), rope, attend, layer))
        return x_BTD + self.drop(self.ffn(self.ffn_norm(x_BTD)))


class Trunk(nn.Module):
    """Embedding, blocks, final norm, head."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        """Whether a training pass keeps only what goes into a block, and computes its inside again on the way back."""
        self.embedding = nn.Embedding(config.vocabulary_size, config.shape.width)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.shape.layers))
        self.norm = nn.RMSNorm(config.shape.width, config.norm_eps)
        self.head = Head(config.shape.width, config.vocabulary_size)
        if config.tied:
            self.head.weight = self.embedding.weight

    def initialise(self, seed: int) -> Trunk:
        """Normal(0, 0.02) weights from the seed alone; what writes into the residual stream divided by sqrt(2L)."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if "norm" in name or parameter.ndim < 2:
                nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
                continue
            into_stream = name.endswith(("attention.out.weight", "ffn.down.weight"))
            scale = (2 * self.config.shape.layers) ** -0.5 if into_stream else 1.0
            nn.init.normal_(parameter, 0.0, _INIT_STD * scale, generator=generator)
        return self

    def forward(self, x_BTD: Tensor, positions_BTA: Tensor, attend: Attend) -> Tensor:
        """Hidden states (B, T, D) after the final norm; `head` turns them into logits (B, T, V).

        `x` is what stands at each place, of plain tokens `embedding(tokens)`; positions are (B, T), or (B, T, A).
        """
        config = self.config
        rope = rope_table(positions_BTA, config.shape.head_dim, config.rope_base, config.rope_sections)
        x_BTD = self.drop(x_BTD)
        for layer, block in enumerate(self.blocks):
            if self.recompute and torch.is_grad_enabled():
                x_BTD = checkpoint(block, x_BTD, rope, attend, layer, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, rope, attend, layer)
        return self.norm(x_BTD)


def without_copies(trunk: Trunk) -> dict[str, Tensor]:
    """The state without the head where it is the embedding's matrix: safetensors holds no memory twice."""
    state = trunk.state_dict()
    return {name: tensor for name, tensor in state.items() if not (trunk.config.tied and name == "head.weight")}


def complete(state: Mapping[str, Tensor], config: TrunkConfig) -> dict[str, Tensor]:
    """The inverse of `without_copies`, for `load_state_dict`."""
    return {**state, "head.weight": state["embedding.weight"]} if config.tied else {**state}
