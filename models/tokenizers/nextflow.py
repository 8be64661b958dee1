"""NextFlow's tokenizer (arXiv 2601.02204), after TokenFlow (arXiv 2412.03069): two branches, one index, many scales.

A semantic encoder and a convolutional pixel encoder see the same frame. Each has a codebook of K rows; a place gets
the one row whose weighted sum of both distances is least. Both latents are quantised residually over grids from
coarse to fine. The pixel decoder paints from both, the semantic decoder predicts a frozen teacher's features from its
own. Legend: as in interface.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import mse_loss, normalize

from models.tokenizers import multiscale, semantic, shapes, towers
from models.tokenizers.interface import WEIGHTS_FILE, Encoded, Grid, Painted, VisionTokenizer
from models.tokenizers.quantise import BLOCK_ELEMENTS, Codebook, distances, straight_through
from models.tokenizers.scales import Sides, grids_of, num_places
from models.tokenizers.shapes import NextFlowShape

_TEACHER = "teacher"


class NextFlowTokenizer(VisionTokenizer):
    """Frames to codes of every scale, and back. Any size that is a multiple of the stride; a video is its frames."""

    kind: ClassVar[str] = "nextflow"

    def __init__(self, shape: NextFlowShape) -> None:
        super().__init__()
        self.shape = shape
        self.codebook_size = shape.codebook_size
        self.stride = (1, shape.pixel.stride)
        learned = shape.codebook == "gradient"
        self.semantic = semantic.branch(shape)
        self.semantic_out = nn.Conv2d(self.semantic.width, shape.semantic_dim, 1)
        self.teacher = semantic.Siglip(shape.teacher, shape.pixel.stride) if shape.teacher else None
        width = self.teacher.width if self.teacher else semantic.CLASSICAL
        self.semantic_decoder = nn.Sequential(
            nn.Conv2d(shape.semantic_dim, 4 * width, 1), nn.GELU(), nn.Conv2d(4 * width, width, 1)
        )
        self.pixel = towers.encoder(shape.pixel, shape.pixel_dim)
        self.semantic_book = Codebook(shape.codebook_size, shape.semantic_dim, learned=learned, restart=shape.restart)
        self.pixel_book = Codebook(
            shape.codebook_size, shape.pixel_dim, learned=learned, rate=shape.rate, restart=shape.restart
        )
        decoder = towers.decoder(shape.pixel, shape.semantic_dim + shape.pixel_dim)
        self.decoder = towers.deepened(decoder) if shape.deepened else decoder
        if self.teacher:
            self.teacher.requires_grad_(False)

    @classmethod
    def from_folder(cls, folder: Path, shape: NextFlowShape) -> NextFlowTokenizer:
        """The tokenizer of a checkpoint folder, which holds the teacher too."""
        here = str(folder / _TEACHER) if shape.teacher else None
        found = cls(dataclasses.replace(shape, teacher=here))
        found.load_state_dict(load_file(folder / WEIGHTS_FILE))
        found.shape = shape
        return found

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """As ever, with the teacher's configuration."""
        super().save(folder, weights)
        if self.teacher:
            self.teacher.model.config.save_pretrained(folder / _TEACHER)

    def identity(self) -> dict[str, Any]:
        """The shape, without the place of the teacher, whose weights are among the others."""
        return shapes.plain(self.shape) | {"teacher": self.shape.teacher is not None}

    def phase(self, name: str) -> None:
        """pixel: that branch alone, by its own distance. joint: all. decoder: the pixel decoder, doubled, alone."""
        if name == "decoder" and not self.shape.deepened:
            self.decoder = towers.deepened(self.decoder)
            self.shape = dataclasses.replace(self.shape, deepened=True)
        if name in ("pixel", "joint", "all"):
            self.shape = dataclasses.replace(self.shape, joint=name != "pixel")
        elif name != "decoder":
            raise ValueError(f"the tokenizer nextflow has no phase {name!r}: use pixel, joint or decoder")
        learned = self.shape.codebook == "gradient"
        trained = {
            "decoder": True,
            "pixel": name != "decoder",
            "pixel_book": learned and name != "decoder",
            "semantic": name in ("joint", "all"),
            "semantic_out": name in ("joint", "all"),
            "semantic_decoder": name in ("joint", "all"),
            "semantic_book": learned and name in ("joint", "all"),
        }
        self._codes_learn = name != "decoder"
        for part, yes in trained.items():
            getattr(self, part).requires_grad_(yes)

    def grids(self, frames: int, height: int, width: int) -> tuple[Grid, ...]:
        """One per scale, frame after frame."""
        return tuple((1, *sides) for _ in range(frames) for sides in self.scales(frames, height, width))

    def scales(self, frames: int, height: int, width: int) -> tuple[Sides, ...]:
        """Grids of one frame."""
        self.checked(frames, height, width)
        return grids_of(self.shape.scales, height // self.stride[1], width // self.stride[1])

    def latent(self, pixels_N3HW: Tensor) -> Tensor:
        """Semantic and pixel latents together (N, Ds + Dp, h, w), float32; the first are 0 before the joint phase."""
        pixel = self.pixel(pixels_N3HW)
        if self.shape.joint:
            return torch.cat((self.semantic_out(self.semantic(pixels_N3HW)), pixel), 1).float()
        nothing = pixel.new_zeros(len(pixel), self.shape.semantic_dim, *pixel.shape[-2:])
        return torch.cat((nothing, pixel), 1).float()

    def distances(self, latent_MD: Tensor) -> Tensor:
        """(M, K): semantic distance + w * pixel distance (TokenFlow, equation 3), less what all codes share."""
        meant_MD, seen_MD = latent_MD.split([self.shape.semantic_dim, self.shape.pixel_dim], 1)
        books = self.semantic_book.weight.detach(), self.pixel_book.weight.detach()
        if self.shape.normalised:
            meant_MD, seen_MD = normalize(meant_MD, dim=1), normalize(seen_MD, dim=1)
            books = normalize(books[0], dim=1), normalize(books[1], dim=1)
        seen = self.shape.pixel_weight * distances(seen_MD, books[1])
        return seen + distances(meant_MD, books[0]) if self.shape.joint else seen

    def costs(self, latent_MD: Tensor, share: float) -> Iterator[Tensor]:
        """(m, K) distance and price, of so many latents at a time that there are at most BLOCK_ELEMENTS.

        `share`: places of their grid over those of the finest. A coarse code stands for many fine places: its error
        counts in all of them, its price once (the Lagrangian of distortion and rate).
        """
        price_K = self.pixel_book.price()
        price = 0.0 if price_K is None else share * price_K
        for part in latent_MD.split(max(1, BLOCK_ELEMENTS // self.codebook_size)):
            yield self.distances(part) + price

    def nearest(self, latent_MD: Tensor, share: float = 1.0) -> Tensor:
        """(M) the shared index of the least cost; where codes have a price, both books' rows have the pixel book's."""
        return torch.cat([cost.argmin(1) for cost in self.costs(latent_MD, share)])

    def nearest_few(self, latent_MD: Tensor, count: int, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """(M, k) least costs, and the indices at them."""
        count = min(count, self.codebook_size)
        found = [cost.topk(count, dim=1, largest=False) for cost in self.costs(latent_MD, share)]
        return torch.cat([few.values for few in found]), torch.cat([few.indices for few in found])

    def lookup(self, codes: Tensor) -> Tensor:
        """(..., Ds + Dp): both codebooks' rows of the index."""
        meant = self.semantic_book.weight[codes]
        return torch.cat((meant if self.shape.joint else torch.zeros_like(meant), self.pixel_book.weight[codes]), -1)

    def added_up(self, parts: Sequence[Tensor]) -> Tensor:
        """(N, D, H, W) what is decoded of what these scales say, each by itself."""
        return torch.stack(list(parts)).sum(0) if self.shape.residual else parts[-1]

    def _quantised(self, latent: Tensor, scales: Sequence[Sides]) -> Iterator[multiscale.Scale]:
        return multiscale.quantised(latent, scales, self.nearest, self.lookup, self.shape.residual)

    @torch.no_grad()
    def encode(self, pixels_NT3HW: Tensor) -> Encoded:
        """Codes of every scale, and what self-correction shows a model instead."""
        n, t, _, height, width = pixels_NT3HW.shape
        latent = self.latent(pixels_NT3HW.flatten(0, 1))
        found = list(self._quantised(latent, self.scales(t, height, width)))
        ids = torch.cat([scale.codes_Nhw.flatten(1) for scale in found], 1)
        inputs = None
        if self.shape.correction_share:
            each = [(scale.latent_MD.unflatten(0, (n * t, -1)), scale.share) for scale in found]
            rows = [self._shown([(latent[row], share) for latent, share in each], ids[row]) for row in range(n * t)]
            inputs = torch.stack(rows).view(n, -1)
        return Encoded(grids=self.grids(t, height, width), ids=ids.view(n, -1), input_ids=inputs)

    def _shown(self, scales: Sequence[tuple[Tensor, float]], ids_L: Tensor) -> Tensor:
        """Inputs of one frame, after each scale's latents (L, D) and share. What is left for the next scale follows the
        targets, not what is drawn: targets are those of the uncorrected picture."""
        shape, at, drawn = self.shape, 0, list[Tensor]()
        for number, (latent_LD, share) in enumerate(scales):
            target = ids_L[at : at + len(latent_LD)]
            at += len(latent_LD)
            near, codes = self.nearest_few(latent_LD, shape.correction_top_k, share)
            rule = {"share": shape.correction_share, "temperature": shape.correction_temperature}
            drawn.append(multiscale.drawn_inputs(near, codes, target, salt=bytes([number]), **rule))
        return torch.cat(drawn)

    @torch.no_grad()
    def decode(self, encoded: Encoded) -> Tensor:
        """Frames of the targets: the sum of what all scales add."""
        assert encoded.ids is not None
        full = encoded.grids[-1][1:]
        frames = sum(grid[1:] == full for grid in encoded.grids)
        scales = [grid[1:] for grid in encoded.grids[: len(encoded.grids) // frames]]
        ids = encoded.ids.view(-1, num_places(scales))
        total = self.added_up(list(multiscale.parts(ids, scales, full, self.lookup)))
        return self.decoder(total).unflatten(0, (len(encoded.ids), frames)).clamp(-1, 1)

    def forward(self, pixels_NT3HW: Tensor, seed: int, places: Sequence[int] | None = None) -> Painted:
        """Reconstruction over the scales that were not dropped; commitment, codebook and semantic losses."""
        pixels_N3HW = pixels_NT3HW.flatten(0, 1)
        latent = self.latent(pixels_N3HW)
        scales = kept_scales(self.scales(1, *pixels_N3HW.shape[-2:]), self.shape.scale_drop, seed)
        found = list(self._quantised(latent, scales))
        held_to = found if self.shape.residual else found[-1:]
        committed = torch.stack([mse_loss(latent, scale.total_NDHW.detach()) for scale in held_to]).mean()
        terms = {"commitment": self.shape.commitment * committed}
        if self.shape.codebook == "gradient":
            placed = [mse_loss(scale.total_NDHW, latent.detach()) for scale in found]
            terms["codebook"] = torch.stack(placed).mean()
        straight = straight_through(latent, found[-1].total_NDHW)
        if self.shape.joint and self.shape.semantic_loss:
            guess = self.semantic_decoder(straight[:, : self.shape.semantic_dim])
            terms["semantic"] = self.shape.semantic_loss * semantic.distance(guess, self._target(pixels_N3HW))
        samples = len(pixels_NT3HW)
        latents = torch.cat([s.latent_MD.detach().unflatten(0, (samples, -1)) for s in found], 1)
        codes = torch.cat([s.codes_Nhw.reshape(samples, -1) for s in found], 1)
        return Painted(pixels=self.decoder(straight).view_as(pixels_NT3HW), terms=terms, latents=latents, codes=codes)

    @torch.no_grad()
    def _target(self, pixels_N3HW: Tensor) -> Tensor:
        return self.teacher(pixels_N3HW) if self.teacher else semantic.classical(pixels_N3HW, self.stride[1])

    def code_vectors(self) -> Tensor:
        """(K, Ds + Dp), both codebooks' rows."""
        return self.lookup(torch.arange(self.codebook_size, device=self.pixel_book.weight.device))

    def learn(self, latents_MD: Tensor, codes_M: Tensor, seed: int) -> int:
        """Both codebooks, row by row together; they stand still while the decoder is tuned."""
        if not getattr(self, "_codes_learn", True):
            return 0
        parts = latents_MD.split([self.shape.semantic_dim, self.shape.pixel_dim], 1)
        rules: dict[str, Any] = {"decay": self.shape.decay, "dead_below": self.shape.dead_below, "seed": seed}
        if self.shape.restart == "far":
            rules |= {"far_M": (latents_MD - self.lookup(codes_M)).square().sum(1)}
        if self.shape.rate:
            own_MD = latents_MD if self.shape.joint else parts[1]
            rules |= {"near_M": own_MD.square().sum(1) + self.distances(latents_MD).amin(1)}
        restarted = self.pixel_book.learn(parts[1].contiguous(), codes_M, **rules)
        self.semantic_book.learn(parts[0].contiguous(), codes_M, **rules)
        return restarted


def kept_scales(scales: Sequence[Sides], drop: float, seed: int) -> list[Sides]:
    """Scales of a training step, drawn from the seed: each but the finest is left out with probability `drop`
    (NextFlow: 50 %)."""
    draws = torch.rand(len(scales), generator=torch.Generator().manual_seed(seed))
    return [sides for place, sides in enumerate(scales) if place == len(scales) - 1 or draws[place] >= drop]
