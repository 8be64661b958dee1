"""Train the vision tokenizer: a small VQ-VAE over frames of the selected clips."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages import frames
from stages.base import BadRow, Edge, Job, JobStage, Row, above_zero

if TYPE_CHECKING:
    import torch

    from models.tokenizers.vq import VqConfig, VqTokenizer

_OPTIMIZER_FILE = "optimizer.safetensors"
_READ_CLIPS = 64
_SHOWN = 12
"""Frames in the picture of reconstructions."""
_LOG_EVERY = 20
_BATCH_FRAMES = 64
"""Frames encoded at once where quality is measured."""


@dataclass(frozen=True, kw_only=True)
class Tokenizer(JobStage):
    """Trains a VQ-VAE (models/tokenizers/vq.py) on frames of the clips that are not held out.

    One process. Each step's frames are a pure function of seed and step, so a run that was killed goes on from its last
    checkpoint as if nothing had happened. Held-out clips are only measured: PSNR and the perplexity of their codes.
    A clip that does not decode is rejected with the reason. Yields one row: the final checkpoint.
    """

    writes: ClassVar[str] = "tokenizer"
    inputs: ClassVar[tuple[Edge, ...]] = (
        Edge("clips", columns=("media", "source_kind", "num_frames", "held_out"), held=True),
    )
    content: ClassVar[tuple[str, ...] | None] = ("files_sha256",)
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("step", pa.int64()),
            ("manifest", pa.string()),
            ("manifest_sha256", pa.string()),
            ("files_sha256", pa.string()),
            ("codebook_size", pa.int32()),
            ("psnr", pa.float64()),
            ("perplexity", pa.float64()),
        ]
    )

    size: int = 64
    """Frames are scaled to this short side and cut square (pixels); a code stands for 8x8 of them."""
    frames_per_clip: int = 4
    """Frames taken of a video clip; a still is one."""
    codebook_size: int = 256
    """K, number of codes."""
    code_dim: int = 8
    """D, size of a code."""
    width: int = 32
    """Channels at a quarter of the resolution; twice that at an eighth."""
    blocks: int = 1
    """Residual blocks at each resolution, in encoder and decoder."""
    steps: int = 2000
    """Optimizer steps."""
    batch: int = 16
    """Frames a step."""
    learning_rate: float = 3e-3
    """Peak of Adam's; 50 steps of warm-up, then linear to a hundredth."""
    commitment: float = 0.25
    """Weight of the commitment loss (arXiv 1711.00937, equation 3)."""
    decay: float = 0.95
    """Of the moving averages of the codebook, a step."""
    dead_below: float = 0.05
    """A code used less often than this, times a batch, restarts at a latent of the batch."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    seed: int = 0

    def __post_init__(self) -> None:
        above_zero(
            self,
            "size",
            "frames_per_clip",
            "codebook_size",
            "code_dim",
            "width",
            "steps",
            "batch",
            "learning_rate",
            "checkpoint_every",
        )

    def run(self, job: Job) -> Iterator[Row]:
        """Decode, train, measure, publish."""
        seen, unseen = self._decoded(job)
        if not len(seen):
            return
        last = job.checkpoints.latest()
        if last is None or last.step < self.steps:
            training = _Training(self, job)
            training.train(seen, unseen)
            last = job.checkpoints.latest()
        assert last is not None
        facts = last.facts
        job.summary({name: float(facts[name]) for name in ("psnr", "perplexity", "frames", "heldout_frames")})
        yield {
            "step": last.step,
            "manifest": last.manifest,
            "manifest_sha256": last.manifest_sha256,
            "files_sha256": last.files_sha256,
            "codebook_size": self.codebook_size,
            "psnr": facts["psnr"],
            "perplexity": facts["perplexity"],
            "parents": [],
            "label": f"tokenizer step {last.step}",
        }

    def config(self) -> VqConfig:
        """What the checkpoint says about itself."""
        from models.tokenizers.vq import VqConfig

        return VqConfig(
            size=self.size,
            frames=self.frames_per_clip,
            codebook_size=self.codebook_size,
            code_dim=self.code_dim,
            width=self.width,
            blocks=self.blocks,
        )

    def _decoded(self, job: Job) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Frames (N, size, size, 3) to train on and frames to measure on, in order of the clips' keys."""
        reader = job.reader("clips")
        found: dict[bool, list[tuple[bytes, NDArray[np.uint8]]]] = {False: [], True: []}
        done = 0
        columns = ["key", "label", "media", "source_kind", "held_out"]
        for batch in reader.scan(columns, batch_rows=_READ_CLIPS):
            for row in batch.to_pylist():
                try:
                    made = frames.prepare(row["media"], row["source_kind"], self.frames_per_clip, self.size)
                except BadRow as bad:
                    job.reject(row["key"], row["label"], str(bad))
                    continue
                found[bool(row["held_out"])].append((row["key"], made))
            done += batch.num_rows
            job.progress(done, len(reader), "clips decoded")
        none = np.zeros((0, self.size, self.size, 3), np.uint8)
        stacks = [[made for _, made in sorted(found[held], key=lambda item: item[0])] for held in (False, True)]
        return np.concatenate([none, *stacks[0]]), np.concatenate([none, *stacks[1]])


class _Training:
    """Model, optimizer and position; everything a checkpoint holds."""

    def __init__(self, stage: Tokenizer, job: Job) -> None:
        import torch

        from models.tokenizers.vq import VqTokenizer

        torch.set_num_threads(1)  # with a second one, small kernels wait 20 times longer whenever a core is taken
        self.stage, self.job = stage, job
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stage.seed)
            self.model: VqTokenizer = VqTokenizer(stage.config())
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=stage.learning_rate, betas=(0.9, 0.99))
        self.step = 0

    def train(self, seen: NDArray[np.uint8], unseen: NDArray[np.uint8]) -> None:
        """From the last checkpoint to the last step."""
        import torch

        from models.tokenizers.vq import to_pixels, update_codebook, vq_loss

        self.restore()
        stage, model = self.stage, self.model
        frames_N = torch.from_numpy(seen)
        while self.step < stage.steps:
            chosen = np.random.default_rng([stage.seed, self.step]).integers(len(seen), size=stage.batch)
            for group in self.optimizer.param_groups:
                group["lr"] = stage.learning_rate * self._schedule()
            losses = vq_loss(model, to_pixels(frames_N[chosen]), stage.commitment)
            self.optimizer.zero_grad()
            losses.loss.backward()
            self.optimizer.step()
            draw = stage.seed * 1_000_003 + self.step
            restarted = update_codebook(model, losses.latents, losses.codes, stage.decay, stage.dead_below, draw)
            self.step += 1
            if self.step % _LOG_EVERY == 0 or self.step == stage.steps:
                self.job.progress(self.step, stage.steps, "tokenizer steps")
                perplexity = losses.perplexity(stage.codebook_size)
                metrics = {"reconstruction": float(losses.reconstruction), "perplexity": perplexity}
                self.job.log(self.step, metrics | {"loss": losses.loss.item(), "restarted": float(restarted)})
            if self.step % stage.checkpoint_every == 0 or self.step == stage.steps:
                self.publish(seen, unseen)

    def _schedule(self) -> float:
        left = 1 - self.step / self.stage.steps
        return min(1.0, (self.step + 1) / 50) * max(left, 0.01)

    def restore(self) -> None:
        """Take up the last checkpoint, if there is one: weights, codebook, Adam's moments, position."""
        from safetensors.torch import load_file

        from models.tokenizers.vq import load_vq

        last = self.job.checkpoints.latest()
        if last is None:
            return
        with self.job.checkpoints.fetch(last) as folder:
            self.model.load_state_dict(load_vq(folder).state_dict())
            moments = load_file(folder / _OPTIMIZER_FILE)
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in moments.items():
            place, kind = name.split(".")
            state.setdefault(int(place), {})[kind] = tensor
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        self.step = last.step

    def publish(self, seen: NDArray[np.uint8], unseen: NDArray[np.uint8]) -> None:
        """Measure on held-out frames (on some training frames where there are none) and save."""
        from safetensors.torch import save_file

        measured = unseen if len(unseen) else seen[:_BATCH_FRAMES]
        psnr, perplexity, painted = quality(self.model, measured)
        pair = np.stack([measured[:_SHOWN], painted[:_SHOWN]]).reshape(-1, *measured.shape[1:])
        self.job.picture("reconstructions", frames.to_png(frames.mosaic(pair, min(_SHOWN, len(measured))), scale=2))
        facts: dict[str, Any] = {
            "psnr": psnr,
            "perplexity": perplexity,
            "frames": len(seen),
            "heldout_frames": len(unseen),
            "digest": self.model.digest(),
            "config": asdict(self.model.config),
        }
        with tempfile.TemporaryDirectory(dir=self.job.scratch) as name:
            folder = Path(name)
            self.model.save(folder)
            state = self.optimizer.state_dict()["state"]
            moments = {f"{place}.{kind}": tensor for place, kinds in state.items() for kind, tensor in kinds.items()}
            save_file({k: v.contiguous() for k, v in moments.items()}, folder / _OPTIMIZER_FILE)
            self.job.checkpoints.save(self.step, folder, json.loads(json.dumps(facts)))


def quality(model: VqTokenizer, pictures: NDArray[np.uint8]) -> tuple[float, float, NDArray[np.uint8]]:
    """Mean PSNR (dB, over 8-bit frames), perplexity of the codes, and the reconstructions (N, size, size, 3)."""
    import torch

    from models.tokenizers.vq import to_bytes, to_pixels

    parts, codes = [], []
    for start in range(0, len(pictures), _BATCH_FRAMES):
        codes.append(model.encode(to_pixels(torch.from_numpy(pictures[start : start + _BATCH_FRAMES]))))
        parts.append(to_bytes(model.decode(codes[-1])).numpy())
    painted = np.concatenate(parts)
    error = np.square(painted.astype(np.float64) - pictures).mean(axis=(1, 2, 3))
    share = np.bincount(torch.cat(codes).numpy().ravel(), minlength=model.config.codebook_size).astype(np.float64)
    share = share[share > 0] / share.sum()
    psnr = 10 * np.log10(255.0**2 / np.maximum(error, 1e-10))
    return float(psnr.mean()), float(np.exp(-(share * np.log(share)).sum())), painted
