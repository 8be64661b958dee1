"""How fast the tiny tokenizers learn: error, PSNR and codebook usage over CPU seconds, on clips that are held out.

    plait run --to scores root=/tmp/tokenizers                  the sample corpus (or source=DIR)
    python -m benchmarks.tokenizers /tmp/tokenizers vq-tiny emu3-tiny nextflow-tiny vae-tiny

One worker on one thread in this process, the stage's own loop. CPU seconds are those of the process, decoding and
measuring included. Every clip of the root is used, selected or not; the held-out tenth is measured.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch

from infra.bucket import open_bucket
from infra.store import SnapshotReader
from models.tokenizers.interface import to_pixels
from pipelines.cli.compose import compose
from pipelines.config import strict
from pipelines.standing import Standing
from stages.tokenizer.learner import Learner
from stages.tokenizer.measure import measure
from stages.tokenizer.samples import Samples
from stages.tokenizer.tokenizer import Tokenizer

POINTS = 6


def curve(root: str, preset: str, overrides: list[str]) -> None:
    """Train one preset and print its curve."""
    bucket = open_bucket(root, None, None)
    config = compose([f"tokenizer={preset}", f"root={root}", *overrides])
    stage = strict(Tokenizer, config.settings["tokenizer"], "tokenizer")
    snapshot = Standing(bucket).snapshot("clips")
    clips = SnapshotReader(bucket, snapshot, np.arange(snapshot.rows))
    started = time.process_time()
    learner = Learner(stage, torch.device("cpu"))
    samples = Samples(clips, stage, learner.tokenizer.stride)
    parameters = sum(p.numel() for p in learner.tokenizer.parameters())
    print(f"\n{preset}: {parameters / 1e6:.2f} M parameters, {len(samples.seen)} clips, {len(samples.unseen)} held out")
    print(f"{'step':>6} {'CPU s':>7} {'PSNR':>6} {'SSIM':>6} {'usage':>6} {'perplexity':>10}   last losses")
    every = max(1, stage.steps // POINTS)
    while learner.step < stage.steps:
        told = learner.learn(to_pixels(torch.from_numpy(samples.batch(learner.step, 0, 1).pixels)), 0, 1)
        if learner.step % every == 0 or learner.step == stage.steps:
            spent = time.process_time() - started
            learner.tokenizer.eval()
            found, picture = measure(learner.tokenizer, samples)
            learner.tokenizer.train()
            losses = " ".join(f"{name} {value:.3g}" for name, value in sorted(told.items()))
            names = ("psnr", "ssim", "usage", "perplexity")
            psnr, ssim, used, perplexity = (float("nan") if found[n] is None else found[n] for n in names)
            print(f"{learner.step:>6} {spent:>7.1f} {psnr:>6.2f} {ssim:>6.3f} {used:>6.2f}", end=" ")
            print(f"{perplexity:>10.1f}   {losses}", flush=True)
            if out := os.environ.get("PICTURES"):
                (Path(out) / f"{preset}-{learner.step:05d}.png").write_bytes(picture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("presets", nargs="+", help="names of conf/tokenizer/, and settings: name=value")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for preset in [name for name in given.presets if "=" not in name]:
        curve(given.root, preset, [name for name in given.presets if "=" in name])
