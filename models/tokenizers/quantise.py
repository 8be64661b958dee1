"""Codes: the nearest one, how a codebook learns, and how well it is used. Legend: as in interface.py.

Learning is ours, not vector-quantize-pytorch's (which is the oracle of the tests): it sees the latents of all workers
in the order of the samples and draws restarts from a seed, so that any number of workers makes the same codebook.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

BLOCK_ELEMENTS = 1 << 26
"""Distances held at once (256 MB of floats)."""


def distances(latent_MD: Tensor, codebook_KD: Tensor) -> Tensor:
    """(M, K) squared distances, less the squared length of the latent, which all codes share; float32."""
    latent_MD, codebook_KD = latent_MD.float(), codebook_KD.float()
    return codebook_KD.square().sum(1) - 2 * latent_MD @ codebook_KD.T


def nearest(latent_MD: Tensor, codebook_KD: Tensor) -> Tensor:
    """(M) index of the nearest code, the lower one of equals."""
    block = max(1, BLOCK_ELEMENTS // len(codebook_KD))
    return torch.cat([distances(part, codebook_KD).argmin(1) for part in latent_MD.split(block)])


def straight_through(latent: Tensor, quantised: Tensor) -> Tensor:
    """The quantised values, with the gradient passed to the latent as it is (arXiv 1711.00937, section 3.2)."""
    return latent + (quantised - latent).detach()


class Codebook(nn.Module):
    """K codes of D numbers that learn by moving averages (`learned=False`) or by gradient, and restart when dead."""

    counts: Tensor
    """(K) moving average of uses a step."""
    sums: Tensor
    """(K, D) moving average of the sum of latents of each code; unused where codes learn by gradient."""

    def __init__(self, size: int, dim: int, *, learned: bool, normalised: bool = False) -> None:
        super().__init__()
        first = torch.empty(size, dim).uniform_(-1 / size, 1 / size)
        self.weight = nn.Parameter(first, requires_grad=learned)
        self.learned, self.normalised = learned, normalised
        self.register_buffer("counts", torch.zeros(size))
        self.register_buffer("sums", torch.zeros(0 if learned else size, dim))

    def codes(self) -> Tensor:
        """(K, D) codes as they are compared and looked up."""
        return normalize(self.weight, dim=1) if self.normalised else self.weight

    def place(self, latent: Tensor) -> Tensor:
        """Latents (..., D) as they are compared."""
        return normalize(latent, dim=-1) if self.normalised else latent

    def nearest(self, latent_MD: Tensor) -> Tensor:
        """(M) index of the nearest code."""
        return nearest(latent_MD.detach(), self.codes().detach())

    @torch.no_grad()
    def learn(self, latent_MD: Tensor, codes_M: Tensor, *, decay: float, dead_below: float, seed: int) -> int:
        """One step of the moving averages; returns how many dead codes restarted at latents drawn by the seed.

        Dead is a code used less than `dead_below` times a step on the average. The first call places all codes on
        latents.
        """
        K, D = self.weight.shape
        first = not bool(self.counts.any())
        use_K = torch.bincount(codes_M, minlength=K).to(latent_MD)
        self.counts.mul_(decay).add_(use_K, alpha=1 - decay)
        if not self.learned:
            added = torch.zeros(K, D, device=latent_MD.device).index_add_(0, codes_M, latent_MD)
            self.sums.mul_(decay).add_(added, alpha=1 - decay)
        dead_K = self.counts < dead_below
        if first and dead_below > 0:
            dead_K = torch.ones_like(dead_K)
        drawn_K = torch.randint(len(latent_MD), (K,), generator=torch.Generator().manual_seed(seed))
        fresh = latent_MD[drawn_K.to(latent_MD.device)[dead_K]]
        self.counts[dead_K] = 1.0
        if self.learned:
            self.weight[dead_K] = fresh
        else:
            self.sums[dead_K] = fresh
            self.weight.copy_(self.sums / self.counts.clamp_min(1e-6)[:, None])
        return int(dead_K.sum())


def usage(codes_M: Tensor, codebook_size: int) -> tuple[float, float]:
    """Share of the codes that occur, and their perplexity: exp of the entropy, 1 if one is used, K if all equally."""
    share_K = torch.bincount(codes_M.flatten(), minlength=codebook_size).double()
    share_K = share_K / share_K.sum().clamp_min(1)
    entropy = -(share_K * share_K.clamp_min(1e-12).log()).sum()
    return float((share_K > 0).double().mean()), float(entropy.exp())
