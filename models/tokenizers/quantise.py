"""Codes: the nearest one, how a codebook learns, and how well it is used. Legend: as in interface.py.

Learning is ours, not vector-quantize-pytorch's (which is the oracle of the tests): it sees the latents of all workers
in the order of the samples and draws restarts from a seed, so that any number of workers makes the same codebook.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

BLOCK_ELEMENTS = 1 << 26
"""Distances held at once (256 MB of floats)."""
_LEAST_USE = 1e-3
"""Uses a step of a code that was never used: its price is finite."""

Restart = Literal["any", "far"]
"""Where dead codes restart: at any latent, or the more likely the further a latent lies from its code, as k-means++
places its centres (Arthur and Vassilvitskii 2007)."""


def distances(latent_MD: Tensor, codebook_KD: Tensor) -> Tensor:
    """(M, K) squared distances, less the squared length of the latent, which all codes share; float32."""
    latent_MD, codebook_KD = latent_MD.float(), codebook_KD.float()
    return codebook_KD.square().sum(1) - 2 * latent_MD @ codebook_KD.T


def nearest(latent_MD: Tensor, codebook_KD: Tensor, price_K: Tensor | None = None) -> Tensor:
    """(M) index of the nearest code, the lower one of equals; `price_K` is added to the squared distances."""
    block, price = max(1, BLOCK_ELEMENTS // len(codebook_KD)), 0.0 if price_K is None else price_K
    return torch.cat([(distances(part, codebook_KD) + price).argmin(1) for part in latent_MD.split(block)])


def _shares(counts_K: Tensor) -> Tensor:
    """Of all uses; none is 0."""
    counts_K = counts_K + _LEAST_USE
    return counts_K / counts_K.sum()


def straight_through(latent: Tensor, quantised: Tensor) -> Tensor:
    """The quantised values, with the gradient passed to the latent as it is (arXiv 1711.00937, section 3.2)."""
    return latent + (quantised - latent).detach()


class Codebook(nn.Module):
    """K codes of D numbers that learn by moving averages (`learned=False`) or by gradient, and restart when dead."""

    counts: Tensor
    """(K) moving average of uses a step."""
    sums: Tensor
    """(K, D) moving average of the sum of latents of each code; unused where codes learn by gradient."""

    error: Tensor
    """() moving average of the squared distance to the nearest code; only where codes have a price."""

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        learned: bool,
        normalised: bool = False,
        rate: float = 0.0,
        restart: Restart = "any",
    ) -> None:
        super().__init__()
        first = torch.empty(size, dim).uniform_(-1 / size, 1 / size)
        self.weight = nn.Parameter(first, requires_grad=learned)
        self.learned, self.normalised, self.rate, self.restart = learned, normalised, rate, restart
        self.register_buffer("counts", torch.zeros(size))
        self.register_buffer("sums", torch.zeros(0 if learned else size, dim))
        if rate:
            self.register_buffer("error", torch.zeros(()))

    def codes(self) -> Tensor:
        """(K, D) codes as they are compared and looked up."""
        return normalize(self.weight, dim=1) if self.normalised else self.weight

    def place(self, latent: Tensor) -> Tensor:
        """Latents (..., D) as they are compared."""
        return normalize(latent, dim=-1) if self.normalised else latent

    def nearest(self, latent_MD: Tensor) -> Tensor:
        """(M) index of the nearest code; of the one with the least distance and price, where codes have one.

        The price is `rate` times the mean squared distance times -ln of the share of uses, as entropy-constrained
        vector quantisation has it (Chou, Lookabaugh, Gray 1989): what is all but the same gets the same, common code.
        """
        return nearest(latent_MD.detach(), self.codes().detach(), self.price())

    def price(self) -> Tensor | None:
        """(K) what is added to the squared distance of each code."""
        return -self.rate * self.error * _shares(self.counts).log() if self.rate else None

    @torch.no_grad()
    def learn(
        self,
        latent_MD: Tensor,
        codes_M: Tensor,
        *,
        decay: float,
        dead_below: float,
        seed: int,
        far_M: Tensor | None = None,
        near_M: Tensor | None = None,
    ) -> int:
        """One step of the moving averages; returns how many dead codes restarted at latents drawn by the seed.

        Dead is a code used less than `dead_below` times a step on the average. The first call places all codes on
        latents. `far_M` and `near_M`: squared distances to the code of each latent and to the nearest one, where
        another book has a say in them.
        """
        K, D = self.weight.shape
        first = not bool(self.counts.any())
        drawn_K = self._drawn(latent_MD, codes_M, seed, far_M)
        if self.rate:
            if near_M is None:
                near_M = latent_MD.square().sum(1) + distances(latent_MD, self.codes()).amin(1)
            self.error.mul_(decay).add_(near_M.mean(), alpha=1 - decay)
        use_K = torch.bincount(codes_M, minlength=K).to(latent_MD)
        self.counts.mul_(decay).add_(use_K, alpha=1 - decay)
        if not self.learned:
            added = torch.zeros(K, D, device=latent_MD.device).index_add_(0, codes_M, latent_MD)
            self.sums.mul_(decay).add_(added, alpha=1 - decay)
        dead_K = self.counts < dead_below
        if first and dead_below > 0:
            dead_K = torch.ones_like(dead_K)
        fresh = latent_MD[drawn_K.to(latent_MD.device)[dead_K]]
        self.counts[dead_K] = 1.0
        if self.learned:
            self.weight[dead_K] = fresh
        else:
            self.sums[dead_K] = fresh
            self.weight.copy_(self.sums / self.counts.clamp_min(1e-6)[:, None])
        return int(dead_K.sum())

    def _drawn(self, latent_MD: Tensor, codes_M: Tensor, seed: int, far_M: Tensor | None) -> Tensor:
        """(K) latents at which codes would restart."""
        draw = torch.Generator().manual_seed(seed)
        if self.restart == "any":
            return torch.randint(len(latent_MD), (len(self.weight),), generator=draw)
        if far_M is None:
            far_M = (latent_MD - self.codes()[codes_M]).square().sum(1)
        weights_M = far_M.nan_to_num(0.0, 0.0).cpu() + 1e-12
        return torch.multinomial(weights_M, len(self.weight), replacement=True, generator=draw)


def usage(codes_M: Tensor, codebook_size: int) -> tuple[float, float]:
    """Share of the codes that occur, and their perplexity: exp of the entropy, 1 if one is used, K if all equally."""
    share_K = torch.bincount(codes_M.flatten(), minlength=codebook_size).double()
    share_K = share_K / share_K.sum().clamp_min(1)
    entropy = -(share_K * share_K.clamp_min(1e-12).log()).sum()
    return float((share_K > 0).double().mean()), float(entropy.exp())
