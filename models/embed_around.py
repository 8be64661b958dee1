"""What is known around a place (models/around.py) as one vector."""

from __future__ import annotations

from torch import Tensor, nn

from models.around import SLOTS

_NUMBERS = 24
"""Of each neighbour: about what a row of the tokenizers' codebooks has."""


class EmbedAround(nn.Module):
    """Every neighbour in a few numbers, side by side by slot, through one matrix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.neighbour = nn.Linear(width, _NUMBERS)
        self.joined = nn.Linear(SLOTS * _NUMBERS, width, bias=False)

    def forward(self, x_SND: Tensor, slots_SN: Tensor) -> Tensor:
        """(..., S, D) of neighbours (..., S, N, D) and their slots (S, N); who is in slot `NOBODY` counts for nothing,
        and an empty slot differs from every code by the first matrix's bias."""
        few = self.neighbour(x_SND)
        side_by_side = few.new_zeros(*few.shape[:-2], SLOTS + 1, _NUMBERS)
        index = slots_SN[..., None].expand(few.shape)
        return self.joined(side_by_side.scatter(-2, index, few)[..., :SLOTS, :].flatten(-2))
