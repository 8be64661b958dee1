"""How well a tokenizer redraws clips that it was not trained on, and how it uses its codes. Not a stage.

Legend: N clips, T frames, H and W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from models import quality
from models.tokenizers.interface import VisionTokenizer, to_bytes, to_pixels
from models.tokenizers.quantise import usage
from stages import frames

if TYPE_CHECKING:
    from stages.tokenizer.samples import Samples
    from stages.tokenizer.tokenizer import Tokenizer

_SHOWN = 12
"""Frames in the picture of reconstructions."""


def perceptual(stage: Tokenizer, device: torch.device) -> nn.Module | None:
    """LPIPS, where its weights are given."""
    if not stage.lpips_weights:
        return None
    from models.tokenizers.losses import Lpips

    return Lpips(Path(stage.lpips_weights).expanduser()).to(device).eval()


def measure(
    tokenizer: VisionTokenizer, samples: Samples, lpips: nn.Module | None = None
) -> tuple[dict[str, float | None], bytes]:
    """PSNR (dB), SSIM and LPIPS (None without weights), means over clips of means over their frames; usage and
    perplexity of all codes together; and a picture of reconstructions."""
    scores: list[tuple[float, float, float]] = []
    codes: list[Tensor] = []
    shown: list[np.ndarray] = []
    device = next(tokenizer.parameters()).device
    for pictures in samples.measured():
        encoded = tokenizer.encode(to_pixels(torch.from_numpy(pictures)[None]).to(device))
        if encoded.ids is not None:
            codes.append(encoded.ids.flatten().cpu())
        if not tokenizer.decodes:
            continue
        painted = to_bytes(tokenizer.decode(encoded)[0]).cpu().numpy()[: len(pictures)]
        apart = float("nan")
        if lpips is not None:
            pair = (to_pixels(torch.from_numpy(one)).to(device) for one in (pictures, painted))
            apart = float(lpips(*pair).mean())
        psnr, ssim = (float(metric(pictures, painted).mean()) for metric in (quality.psnr, quality.ssim))
        scores.append((psnr, ssim, apart))
        if len(shown) < _SHOWN:
            shown.append(np.stack([pictures[0], painted[0]]))
    used = usage(torch.cat(codes), tokenizer.codebook_size) if codes else (None, None)
    measured: dict[str, float | None] = dict.fromkeys(("psnr", "ssim", "lpips"))
    measured |= {"usage": used[0], "perplexity": used[1]}
    if not scores:
        return measured, b""
    means = np.mean(scores, axis=0)
    sheet = np.concatenate([np.stack([pair[row] for pair in shown]) for row in range(2)])
    picture = frames.to_png(frames.mosaic(sheet, len(shown)), scale=2 if sheet.shape[1] < 128 else 1)
    measured |= {"psnr": float(means[0]), "ssim": float(means[1])}
    return measured | ({"lpips": float(means[2])} if lpips is not None else {}), picture
