"""The decoder: one file, one path, visible shapes. Llama-2 style, as in Emu3 (arXiv 2409.18869, section 2.2).

Legend: B batch, T tokens, D width, H query heads, G KV heads, E head size, F FFN size, V vocabulary.
It knows no recipe: what a token may see comes in as `attend`, where it stands as `positions`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import silu

from models.attention import Attend
from models.flops import TrunkShape
from models.positions import rope_table, rotate
from models.vocabulary import Vocabulary

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
_INIT_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class TrunkConfig:
    """What, beside the weights, defines the decoder."""

    shape: TrunkShape
    vocabulary_size: int
    """V, rows of embedding and head, which are not tied."""
    rope_base: float = 1e6
    qk_norm: bool = False
    """RMSNorm of every query and key head before the rotation (arXiv 2302.05442)."""
    dropout: float = 0.0
    """On the embedding, both residual branches and attention, 0 to 1."""
    norm_eps: float = 1e-5

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TrunkConfig:
        """The inverse of `to_json`."""
        kwargs: dict[str, Any] = data | {"shape": TrunkShape(**data["shape"])}
        return cls(**kwargs)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        shape = config.shape
        self.heads, self.kv_heads, self.head_dim = shape.heads, shape.kv_heads, shape.head_dim
        self.dropout = config.dropout
        self.q = nn.Linear(shape.width, shape.heads * shape.head_dim, bias=False)
        self.kv = nn.Linear(shape.width, 2 * shape.kv_heads * shape.head_dim, bias=False)
        self.out = nn.Linear(shape.heads * shape.head_dim, shape.width, bias=False)
        norm = (lambda: nn.RMSNorm(shape.head_dim, config.norm_eps)) if config.qk_norm else nn.Identity
        self.q_norm, self.k_norm = norm(), norm()

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], attend: Attend, layer: int) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        B, T, _ = x_BTD.shape
        q_BHTE = self.q(x_BTD).view(B, T, self.heads, self.head_dim).transpose(1, 2)
        k_BTGE, v_BTGE = self.kv(x_BTD).view(B, T, 2, self.kv_heads, self.head_dim).unbind(2)
        q_BHTE = rotate(self.q_norm(q_BHTE), rope)
        k_BGTE = rotate(self.k_norm(k_BTGE.transpose(1, 2)), rope)
        y_BHTE = attend(layer, q_BHTE, k_BGTE, v_BTGE.transpose(1, 2), self.dropout if self.training else 0.0)
        return self.out(y_BHTE.transpose(1, 2).reshape(B, T, -1))


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
    """Pre-norm block: attention, then feed-forward, each a residual branch."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.shape.width, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = nn.RMSNorm(config.shape.width, config.norm_eps)
        self.ffn = FeedForward(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], attend: Attend, layer: int) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x_BTD = x_BTD + self.drop(self.attention(self.attention_norm(x_BTD), rope, attend, layer))
        return x_BTD + self.drop(self.ffn(self.ffn_norm(x_BTD)))


class Trunk(nn.Module):
    """Embedding, blocks, final norm, head."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.shape.width)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.shape.layers))
        self.norm = nn.RMSNorm(config.shape.width, config.norm_eps)
        self.head = nn.Linear(config.shape.width, config.vocabulary_size, bias=False)

    def initialise(self, seed: int) -> Trunk:
        """Normal(0, 0.02) weights from the seed alone; what writes into the residual stream divided by sqrt(2L)."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                nn.init.ones_(parameter)
                continue
            into_stream = name.endswith(("attention.out.weight", "ffn.down.weight"))
            scale = (2 * self.config.shape.layers) ** -0.5 if into_stream else 1.0
            nn.init.normal_(parameter, 0.0, _INIT_STD * scale, generator=generator)
        return self

    def forward(self, tokens_BT: Tensor, positions_BT: Tensor, attend: Attend) -> Tensor:
        """Hidden states (B, T, D) after the final norm; `head` turns them into logits (B, T, V)."""
        rope = rope_table(positions_BT, self.config.shape.head_dim, self.config.rope_base)
        x_BTD = self.drop(self.embedding(tokens_BT))
        for layer, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, rope, attend, layer)
        return self.norm(x_BTD)


def write_config(folder: Path, config: TrunkConfig, vocabulary: Vocabulary, step: int) -> None:
    """`config.json`: the trunk, the vocabulary and the step, all that is needed beside the weights."""
    data = {"trunk": config.to_json(), "vocabulary": json.loads(vocabulary.to_json()), "step": step}
    (folder / CONFIG_FILE).write_text(json.dumps(data, indent=1, sort_keys=True))


def load_trunk(folder: Path) -> tuple[Trunk, Vocabulary, int]:
    """The decoder of a checkpoint folder, in evaluation mode, its vocabulary and its step."""
    data = json.loads((folder / CONFIG_FILE).read_text())
    trunk = Trunk(TrunkConfig.from_json(data["trunk"]))
    trunk.load_state_dict(load_file(folder / WEIGHTS_FILE))
    return trunk.eval(), Vocabulary(**data["vocabulary"]), data["step"]
