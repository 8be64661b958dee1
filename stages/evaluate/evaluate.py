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
from models.layout import Format, Picture, document, prompt
from models.vocabulary import TEXT, VISION
from stages import frames
from stages.base import BadRow, Edge, Job, JobStage, Row, since
from stages.pictures import finest, picture_of

if TYPE_CHECKING:
    import torch

    from models.any_to_any import AnyToAny
    from models.raster import TextTokenizer
    from models.tokenizers.interface import VisionTokenizer
    from stages.evaluate.heldout_loss import Heldout

_NAMES = {TEXT: "text", VISION: "vision"}
_PICTURE_COLUMNS = ("grids", "ids", "input_ids", "latents", "codebook_size", "fps", "num_frames", "size")
_SAMPLE_COLUMNS = 8


@dataclass(frozen=True)
class _Subject:
    """What is scored."""

    model: AnyToAny
    text: TextTokenizer
    tokenizer: VisionTokenizer
    step: int

    @property
    def form(self) -> Format:
        """How its documents are written."""
        return self.model.form

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
    heldout     nats per token of captions and texts, and of visual codes after their caption, beside predictors fitted
                on the training packs: a unigram of each modality, a bigram of text. Of latents the mean squared error
                of their noise, beside a line fitted to each number by itself (stages/evaluate/baselines.py)
    samples     pictures drawn from held-out captions: PSNR to the clip's own codes (latents) redrawn, and, for chance,
                to those of the next caption's clip

    A suite without held-out rows leaves its metrics out.
    """

    writes: ClassVar[str] = "evals"
    revision: ClassVar[int] = 2
    inputs: ClassVar[tuple[Edge, ...]] = (
        Edge("clips", columns=("media", "source_kind", "num_frames", "fps", "held_out")),
        Edge("captions", columns=("text", "held_out")),
        Edge("indices", columns=(*_PICTURE_COLUMNS, "held_out")),
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
    guidance: float = 1.0
    """Of sampling, away from what is drawn without a caption; 1: none."""
    noise_steps: int = 50
    """Of drawing latents out of noise."""
    seed: int = 0
    """Of sampling."""
    inception_weights: str | None = since(None)
    """Path of FID's Inception v3 as safetensors (models/inception.py); none: no rFID."""

    def run(self, job: Job) -> Iterator[Row]:
        """Each suite in turn; rows in order of key."""
        import torch

        from models.any_to_any import load_model
        from models.tokenizers.interface import load_tokenizer
        from models.tokenizers.text import load_text_tokenizer

        torch.set_num_threads(1)
        model, step = load_model(job.checkpoint("model"))
        vocabulary = model.form.vocabulary
        text = load_text_tokenizer(job.checkpoint("text_tokenizer"))
        tokenizer = load_tokenizer(job.checkpoint("tokenizer"))
        seen = vocabulary.vision_digest or tokenizer.digest(), vocabulary.text_digest
        if seen != (tokenizer.digest(), text.digest):
            raise UserError(
                "the model was trained on tokens of another tokenizer than the one given;"
                " run plait run --from indices to bring both together"
            )
        subject = _Subject(model, text, tokenizer, step)
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
        from stages.evaluate.baselines import Bigram, unigram
        from stages.evaluate.heldout_loss import likelihoods

        texts = _held_out(job, "texts", ("text",), self.max_documents)
        documents = [_pair_document(pair, subject) for pair in pairs[: self.max_documents]]
        documents += [_text_document(row, subject) for row in texts]
        if not documents:
            return
        frequencies = unigram(job.reader("packs"), subject.form)
        bigram = Bigram(job.reader("packs"), subject.form, frequencies)
        totals = {kind: np.zeros(4) for kind in _NAMES}
        for one, nats in zip(documents, likelihoods(subject.model, documents), strict=True):
            for kind, name in _NAMES.items():
                chosen = one.measured == kind
                if not chosen.any():
                    continue
                tokens = one.tokens[chosen]
                after = bigram.nats(tokens).sum() if kind == TEXT else 0.0
                own = np.array([nats[chosen].sum(), frequencies[tokens].sum(), after, chosen.sum()])
                totals[kind] += own
                said = f"{int(own[3])} tokens, unigram {own[1] / own[3]:.4f}"
                yield subject.row(f"heldout/{name}", one.key, one.prompt, said, "nats per token", own[0] / own[3])
        for kind, (nats, plain, after, count) in totals.items():
            if count:
                name = _NAMES[kind]
                job.summary({f"heldout/{name}_loss": nats / count, f"heldout/{name}_unigram": plain / count})
                if kind == TEXT:
                    job.summary({"heldout/text_bigram": after / count})
        if subject.form.latent_size:
            yield from self._noise(job, subject, [one for one in documents if one.document.latents])

    def _noise(self, job: Job, subject: _Subject, documents: Sequence[Heldout]) -> Iterator[Row]:
        from stages.evaluate.baselines import LinearNoise
        from stages.evaluate.heldout_loss import noise_errors

        line = LinearNoise(job.reader("packs"), subject.form)
        found: list[tuple[float, float]] = []
        for one, errors, batches in noise_errors(subject.model, documents):
            plain = []
            for batch in batches:
                assert batch.clean_PC is not None and batch.noise_PC is not None and batch.step_P is not None
                kept = float(subject.model.kept[batch.step_P[0]])
                plain.append(line.error(batch.clean_PC.numpy(), batch.noise_PC.numpy(), kept))
            found.append((float(np.mean(errors)), float(np.mean(plain))))
            said = f"{len(errors)} levels, line {found[-1][1]:.4f}"
            yield subject.row("heldout/noise", one.key, one.prompt, said, "mean squared error", found[-1][0])
        if found:
            own, plain = np.mean(found, axis=0)
            job.summary({"heldout/noise_mse": float(own), "heldout/noise_line": float(plain)})

    def _samples(self, job: Job, subject: _Subject, pairs: Sequence[_Pair]) -> Iterator[Row]:
        from models.quality import psnr

        stills = [pair for pair in pairs if finest(pair.picture.grids)[0] == 1]
        if not stills:
            return
        grids = stills[0].picture.grids
        stills = [pair for pair in stills if pair.picture.grids == grids][: self.num_samples]
        codes, drawn, wanted = self._drawn(subject, stills)
        near, chance = psnr(drawn, wanted), psnr(drawn, np.roll(wanted, 1, axis=0))
        job.summary({"samples/psnr": float(near.mean()), "samples/psnr_of_another": float(chance.mean())})
        job.picture("samples", frames.to_png(_rows_of_pairs(drawn, wanted), scale=2))
        for pair, ids, score in zip(stills, codes, near, strict=True):
            yield subject.row("samples", pair.key, pair.text, json.dumps(ids), "psnr to its clip", score)

    def _drawn(
        self, subject: _Subject, stills: Sequence[_Pair]
    ) -> tuple[list[list[int]], NDArray[np.uint8], NDArray[np.uint8]]:
        """What is drawn from each caption: codes (of latents none), as pixels, and its clip's own as pixels."""
        import torch

        from models.generate import Sampling, draw_codes, draw_latents, draw_scales
        from models.tokenizers.interface import Encoded, to_bytes

        how = Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            guidance=self.guidance,
            steps=self.noise_steps,
            seed=self.seed,
        )
        grids, form = stills[0].picture.grids, subject.form
        grid = finest(grids)
        prompts = [prompt(subject.text.encode(pair.text), grid, form, subject.text) for pair in stills]
        plain = [prompt([], grid, form, subject.text)] * len(stills)

        def painted(**codes: torch.Tensor) -> NDArray[np.uint8]:
            return to_bytes(subject.tokenizer.decode(Encoded(grids=grids, **codes))[:, 0]).numpy()

        if form.layout.vision == "latents":
            shape = (len(stills), *grid, form.latent_size)
            vectors = draw_latents(subject.model, prompts, grid, how, plain).view(shape)
            own = torch.from_numpy(np.stack([pair.picture.vectors for pair in stills])).view(shape)
            return [[] for _ in stills], painted(latents=vectors), painted(latents=own.float())
        if form.layout.vision == "scales":
            ids = draw_scales(subject.model, prompts, [grid[1:] for grid in grids], how, plain=plain)
        else:
            ids = draw_codes(subject.model, prompts, grid, how, plain)
        own = torch.from_numpy(np.stack([pair.picture.ids for pair in stills]))
        return ids.tolist(), painted(ids=ids), painted(ids=own)


@dataclass(frozen=True)
class _Pair:
    """A held-out caption with what was extracted of its clip."""

    key: bytes
    text: str
    picture: Picture


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
    """Held-out captions with the largest picture of their clip that is held out, in order of the caption's key."""
    everything = 2**62
    rows = sorted(_held_out(job, "indices", _PICTURE_COLUMNS, everything), key=lambda row: row["size"])
    visual = {row["parents"][0]: row for row in rows}
    captions = _held_out(job, "captions", ("text",), everything)
    chosen = [(caption, visual.get(caption["parents"][0])) for caption in captions]
    return [_Pair(caption["key"], caption["text"], picture_of(row)) for caption, row in chosen if row is not None]


def _pair_document(pair: _Pair, subject: _Subject) -> Heldout:
    """Generation order: the caption unaided, the codes after their caption."""
    from stages.evaluate.heldout_loss import Heldout

    words = subject.text.encode(pair.text)
    made = document([words, pair.picture], subject.form, subject.text)
    tokens, _, _ = made.joined()
    measured = np.where(subject.form.vocabulary.modality(tokens) == VISION, VISION, -1).astype(np.int8)
    measured[1 : 1 + len(words)] = TEXT
    return Heldout(key=pair.key, prompt=pair.text, document=made, tokens=tokens, measured=measured)


def _text_document(row: Row, subject: _Subject) -> Heldout:
    from stages.evaluate.heldout_loss import Heldout

    made = document([subject.text.encode(row["text"])], subject.form, subject.text)
    tokens, _, _ = made.joined()
    measured = np.full(len(tokens), TEXT, np.int8)
    measured[[0, -1]] = -1
    return Heldout(key=row["key"], prompt=row["text"][:200], document=made, tokens=tokens, measured=measured)


def _rows_of_pairs(drawn: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows of drawn images, each above the row of what their captions described."""
    sheets = []
    for start in range(0, len(drawn), _SAMPLE_COLUMNS):
        for part in (drawn, wanted):
            sheets.append(frames.mosaic(part[start : start + _SAMPLE_COLUMNS], _SAMPLE_COLUMNS))
    return np.concatenate(sheets)
