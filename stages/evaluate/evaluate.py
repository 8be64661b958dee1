"""Score a checkpoint on what it was never trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.types import UserError
from models import emu3_format
from models.emu3_format import Grid
from models.tokenizers.codes import unpacked
from models.vocabulary import TEXT, VISION, Vocabulary
from stages import frames
from stages.base import BadRow, Edge, Job, JobStage, Row, since

if TYPE_CHECKING:
    from models.emu3_format import TextTokenizer
    from models.tokenizers.interface import VisionTokenizer
    from models.trunk import Trunk
    from stages.evaluate.heldout_loss import Document

_NAMES = {TEXT: "text", VISION: "vision"}
_SAMPLE_COLUMNS = 8


@dataclass(frozen=True)
class _Subject:
    """What is scored."""

    trunk: Trunk
    vocabulary: Vocabulary
    text: TextTokenizer
    tokenizer: VisionTokenizer
    step: int

    def row(self, suite: str, parent: bytes, prompt: str, output: str, judge: str, score: float) -> Row:
        """One scored sample."""
        said = {"suite": suite, "step": self.step, "prompt": prompt, "output": output, "judge": judge}
        return said | {"score": float(score), "parents": [parent], "label": f"{suite} {prompt[:40]}"}


@dataclass(frozen=True, kw_only=True)
class Evals(JobStage):
    """Three suites over held-out rows, one row per scored sample.

    tokenizer   PSNR (dB) and SSIM of clips redrawn from their codes, mean over the frames of a clip; of films 8
                frames at 12 fps from the middle (Emu3, arXiv 2409.18869, table 2), short side scaled, centre cut;
                with Inception's weights also the FID of all redrawn frames to the true ones (rFID)
    heldout     nats per token of captions and texts, and of visual codes after their caption, beside a unigram fitted
                on the training packs
    samples     images drawn from held-out captions: PSNR to the clip's own codes redrawn, and, for chance, to those of
                the next caption's clip

    A suite without held-out rows leaves its metrics out.
    """

    writes: ClassVar[str] = "evals"
    inputs: ClassVar[tuple[Edge, ...]] = (
        Edge("clips", columns=("media", "source_kind", "num_frames", "fps", "held_out")),
        Edge("captions", columns=("text", "held_out")),
        Edge("indices", columns=("grids", "ids", "codebook_size", "held_out")),
        Edge("texts", columns=("text", "held_out")),
        Edge("packs", columns=("tokens", "segments")),
        Edge("model", role="side"),
        Edge("tokenizer", role="side"),
        Edge("text_tokenizer", role="side"),
    )
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("suite", pa.string()),
            ("step", pa.int64()),
            ("prompt", pa.string()),
            ("output", pa.string()),
            ("judge", pa.string()),
            ("score", pa.float64()),
        ]
    )

    tokenizer_size: int
    """Pixels of the side at which the tokenizer is measured."""
    tokenizer_frames: int = 8
    """Frames of a film."""
    tokenizer_fps: float = 12.0
    """Frames a second."""
    max_clips: int = 200
    """Most clips redrawn."""
    max_documents: int = 300
    """Most held-out pairs, and most held-out texts, whose loss is measured."""
    num_samples: int = 16
    """Images drawn from captions."""
    temperature: float = 0.8
    """Of sampling; 0 takes the most likely code."""
    top_k: int = 64
    """Codes that compete at each place; 0: all."""
    seed: int = 0
    """Of sampling."""
    inception_weights: str | None = since(None)
    """Path of FID's Inception v3 as safetensors (models/inception.py); none: no rFID."""

    def run(self, job: Job) -> Iterator[Row]:
        """Each suite in turn; rows in order of key."""
        import torch

        from models.tokenizers.interface import load_tokenizer
        from models.tokenizers.text import load_text_tokenizer
        from models.trunk import load_trunk

        torch.set_num_threads(1)
        trunk, vocabulary, step = load_trunk(job.checkpoint("model"))
        text = load_text_tokenizer(job.checkpoint("text_tokenizer"))
        tokenizer = load_tokenizer(job.checkpoint("tokenizer"))
        seen = vocabulary.vision_digest or tokenizer.digest(), vocabulary.text_digest
        if seen != (tokenizer.digest(), text.digest):
            raise UserError(
                "the model was trained on tokens of another tokenizer than the one given;"
                " run plait run --from indices to bring both together"
            )
        subject = _Subject(trunk, vocabulary, text, tokenizer, step)
        yield from self._tokenizer(job, subject)
        pairs = _pairs(job)
        yield from self._heldout(job, subject, pairs)
        yield from self._samples(job, subject, pairs)

    def _tokenizer(self, job: Job, subject: _Subject) -> Iterator[Row]:
        import torch

        from models.quality import psnr, ssim
        from models.tokenizers.interface import to_bytes, to_pixels
        from stages.evaluate.rfid import Rfid

        view = frames.View(
            size=self.tokenizer_size, frames=self.tokenizer_frames, fps=self.tokenizer_fps, cover="middle"
        )
        clips = _held_out(job, "clips", ("media", "source_kind", "num_frames", "fps"), self.max_clips)
        scores: list[tuple[float, float]] = []
        rfid = Rfid(self.inception_weights)
        for clip in clips:
            try:
                shown = frames.prepare(
                    clip["media"],
                    clip["source_kind"],
                    clip["num_frames"],
                    clip["fps"],
                    view,
                    subject.tokenizer.stride,
                ).pictures
            except BadRow as bad:
                job.reject(clip["key"], clip["label"], str(bad))
                continue
            encoded = subject.tokenizer.encode(to_pixels(torch.from_numpy(shown)[None]))
            again = to_bytes(subject.tokenizer.decode(encoded)[0]).numpy()[: len(shown)]
            rfid.add(shown, again)
            scores.append((float(psnr(shown, again).mean()), float(ssim(shown, again).mean())))
            for judge, score in zip(("psnr", "ssim"), scores[-1], strict=True):
                yield subject.row("tokenizer", clip["key"], clip["label"], f"{len(shown)} frames", judge, score)
            job.progress(len(scores), len(clips), "clips redrawn")
        if scores:
            means = np.mean(scores, axis=0)
            job.summary({"tokenizer/psnr": float(means[0]), "tokenizer/ssim": float(means[1])} | rfid.summary())

    def _heldout(self, job: Job, subject: _Subject, pairs: Sequence[_Pair]) -> Iterator[Row]:
        from stages.evaluate.heldout_loss import likelihoods, unigram

        texts = _held_out(job, "texts", ("text",), self.max_documents)
        documents = [_pair_document(pair, subject) for pair in pairs[: self.max_documents]]
        documents += [_text_document(row, subject) for row in texts]
        if not documents:
            return
        baseline = unigram(job.reader("packs"), subject.vocabulary)
        totals = {kind: np.zeros(3) for kind in _NAMES}
        for document, nats in zip(documents, likelihoods(subject.trunk, documents), strict=True):
            for kind, name in _NAMES.items():
                chosen = document.measured == kind
                if not chosen.any():
                    continue
                own = np.array([nats[chosen].sum(), baseline[document.tokens[chosen]].sum(), chosen.sum()])
                totals[kind] += own
                said = f"{int(own[2])} tokens, unigram {own[1] / own[2]:.4f}"
                yield subject.row(
                    f"heldout/{name}", document.key, document.prompt, said, "nats per token", own[0] / own[2]
                )
        for kind, (nats, plain, count) in totals.items():
            if count:
                name = _NAMES[kind]
                job.summary({f"heldout/{name}_loss": float(nats / count)})
                job.summary({f"heldout/{name}_unigram": float(plain / count)})

    def _samples(self, job: Job, subject: _Subject, pairs: Sequence[_Pair]) -> Iterator[Row]:
        import torch

        from models.generate import generate_images
        from models.quality import psnr
        from models.tokenizers.interface import Encoded, to_bytes

        stills = [pair for pair in pairs if pair.grid[0] == 1]
        if not stills:
            return
        grid = stills[0].grid
        stills = [pair for pair in stills if pair.grid == grid][: self.num_samples]
        prompts = [
            emu3_format.prompt(subject.text.encode(pair.text), grid, subject.vocabulary, subject.text)
            for pair in stills
        ]
        codes = generate_images(
            subject.trunk,
            subject.vocabulary,
            prompts,
            grid,
            temperature=self.temperature,
            top_k=self.top_k,
            seed=self.seed,
        )
        true = torch.from_numpy(np.stack([pair.codes for pair in stills]))
        drawn, wanted = (
            to_bytes(subject.tokenizer.decode(Encoded(grids=(grid,), ids=x.flatten(1)))[:, 0]).numpy()
            for x in (codes, true)
        )
        near, chance = psnr(drawn, wanted), psnr(drawn, np.roll(wanted, 1, axis=0))
        job.summary({"samples/psnr": float(near.mean()), "samples/psnr_of_another": float(chance.mean())})
        job.picture("samples", frames.to_png(_rows_of_pairs(drawn, wanted), scale=2))
        for pair, ids, score in zip(stills, codes.tolist(), near, strict=True):
            yield subject.row("samples", pair.key, pair.text, json.dumps(ids), "psnr to its clip", score)


@dataclass(frozen=True)
class _Pair:
    """A held-out caption with the codes of its clip."""

    key: bytes
    text: str
    grid: Grid
    codes: NDArray[np.int64]


def _held_out(job: Job, dataset: str, columns: Sequence[str], limit: int) -> list[dict[str, Any]]:
    """The first held-out rows in order of key; no other row's columns are read."""
    reader = job.reader(dataset)
    found: list[tuple[bytes, int]] = []
    row = 0
    for batch in reader.scan(["key", "held_out"]):
        for key, held in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
            if held:
                found.append((key, row))
            row += 1
    chosen = [row for _, row in sorted(found)[:limit]]
    return reader.take(chosen, ["key", "parents", "label", *columns]).to_pylist() if chosen else []


def _pairs(job: Job) -> list[_Pair]:
    """Held-out captions with held-out codes, in order of the caption's key."""
    everything = 2**62
    visual = {
        row["parents"][0]: row for row in _held_out(job, "indices", ("grids", "ids", "codebook_size"), everything)
    }
    captions = _held_out(job, "captions", ("text",), everything)
    pairs = []
    for caption in captions:
        row = visual.get(caption["parents"][0])
        if row is not None:
            codes = unpacked(row["ids"], row["codebook_size"])
            pairs.append(_Pair(caption["key"], caption["text"], tuple(row["grids"][0]), codes))
    return pairs


def _pair_document(pair: _Pair, subject: _Subject) -> Document:
    """Generation order: the caption unaided, the codes after their caption."""
    from stages.evaluate.heldout_loss import Document

    words = subject.text.encode(pair.text)
    sample = emu3_format.Sample(text=words, grid=pair.grid, codes=pair.codes, order="generation")
    tokens = np.asarray(emu3_format.build(sample, subject.vocabulary, subject.text))
    measured = np.where(subject.vocabulary.modality(tokens) == VISION, VISION, -1).astype(np.int8)
    measured[1 : 1 + len(words)] = TEXT
    return Document(key=pair.key, prompt=pair.text, tokens=tokens, measured=measured)


def _text_document(row: Row, subject: _Subject) -> Document:
    from stages.evaluate.heldout_loss import Document

    sample = emu3_format.Sample(text=subject.text.encode(row["text"]))
    tokens = np.asarray(emu3_format.build(sample, subject.vocabulary, subject.text))
    measured = np.full(len(tokens), TEXT, np.int8)
    measured[[0, -1]] = -1
    return Document(key=row["key"], prompt=row["text"][:200], tokens=tokens, measured=measured)


def _rows_of_pairs(drawn: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows of drawn images, each above the row of what their captions described."""
    sheets = []
    for start in range(0, len(drawn), _SAMPLE_COLUMNS):
        for part in (drawn, wanted):
            sheets.append(frames.mosaic(part[start : start + _SAMPLE_COLUMNS], _SAMPLE_COLUMNS))
    return np.concatenate(sheets)
