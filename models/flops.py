"""Cost of a sequence: FLOPs of a decoder over typed segments (GQA, SwiGLU), forward and training.

    P_layer  = d*H*e (Q) + 2*d*G*e (K, V) + H*e*d (O) + 3*d*f (gate, up, down)
    F_linear = 2 * S * L * P_layer
    F_attn   = 4 * L * H * e * A          QK^T and PV; sharing KV heads does not reduce it
    F_head   = 2 * S_loss * d * V
    forward  = F_linear + F_attn + F_head;  train = 3 * forward

S tokens, L layers, d width, H query heads, G KV heads, e head size, f FFN size, V head rows, S_loss positions whose
logits are computed, A attended (query, key) pairs. One multiply-add is 2 FLOPs; norms, rotary embeddings, activations
and look-ups count nothing. Imports no torch, so that planning and packing stay cheap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

TRAIN_OVER_FORWARD = 3
"""Backward costs twice the forward: both operands of every matmul have gradients."""


@dataclass(frozen=True, kw_only=True)
class TrunkShape:
    """Sizes of the decoder: all that its cost depends on, beside the vocabulary."""

    layers: int
    """L, decoder blocks."""
    width: int
    """d, size of the residual stream."""
    heads: int
    """H, query heads; `width` is their multiple."""
    kv_heads: int
    """G, key and value heads; `heads` is their multiple."""
    ffn: int
    """f, hidden size of SwiGLU."""

    def __post_init__(self) -> None:
        if min(self.layers, self.width, self.heads, self.kv_heads, self.ffn) < 1:
            raise ValueError(f"trunk has {self}; every size must be at least 1")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"trunk.width is {self.width}; it must be an even multiple of trunk.heads={self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"trunk.kv_heads is {self.kv_heads}; it must divide trunk.heads={self.heads}")

    @property
    def head_dim(self) -> int:
        """e, size of one head."""
        return self.width // self.heads

    @property
    def layer_parameters(self) -> int:
        """P_layer: matrix entries of one block (norms left out)."""
        attention = 2 * self.width * self.heads * self.head_dim + 2 * self.width * self.kv_heads * self.head_dim
        return attention + 3 * self.width * self.ffn


def causal_pairs(length: int) -> int:
    """A of one causal document of `length` tokens, S(S+1)/2."""
    return length * (length + 1) // 2


def segment_pairs(segments: Iterable[tuple[int, bool]]) -> int:
    """A of one document made of segments (length, whether it has full attention inside).

    Causal order between segments; inside a bidirectional segment of n tokens n(n-1)/2 pairs come on top.
    One rule covers text, images attended both ways, and next-scale blocks: a block is one such segment.
    """
    total = extra = 0
    for length, bidirectional in segments:
        total += length
        extra += length * (length - 1) // 2 if bidirectional else 0
    return causal_pairs(total) + extra


@dataclass(frozen=True, kw_only=True)
class Cost:
    """FLOPs of one forward pass, by part."""

    linear: float
    attention: float
    head: float

    @property
    def forward(self) -> float:
        """FLOPs of a forward pass."""
        return self.linear + self.attention + self.head

    @property
    def train(self) -> float:
        """FLOPs of a forward and a backward pass."""
        return TRAIN_OVER_FORWARD * self.forward


def cost(shape: TrunkShape, vocabulary_size: int, tokens: int, pairs: int, loss_tokens: int) -> Cost:
    """FLOPs of `tokens` positions with `pairs` attended pairs, of which `loss_tokens` reach the head."""
    return Cost(
        linear=2.0 * tokens * shape.layers * shape.layer_parameters,
        attention=4.0 * shape.layers * shape.heads * shape.head_dim * pairs,
        head=2.0 * loss_tokens * shape.width * vocabulary_size,
    )


def causal_cost(shape: TrunkShape, vocabulary_size: int, lengths: Sequence[int], loss_tokens: int) -> Cost:
    """FLOPs of causal documents of these lengths packed together: pairs add up over documents, never over the pack."""
    return cost(shape, vocabulary_size, sum(lengths), sum(causal_pairs(n) for n in lengths), loss_tokens)
