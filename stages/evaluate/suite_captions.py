"""Captions beside what people wrote: CIDEr-D and BLEU of pycocoevalcap, on words as `words` tells them apart."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from infra.types import UserError
from stages.evaluate.suite import Asks, Evidence, Judged, Question, Suite, Verdict
from stages.evaluate.words import words

PROMPT = "Provide a one-sentence caption for the provided image."
"""What lmms-eval asks of COCO's pictures (task coco_cap)."""
_GRAMS = 4
_TINY, _SMALL = 1e-15, 1e-9
"""What BLEU adds above and below, as coco-caption does, so that no guess gives 0."""


@dataclass(frozen=True, kw_only=True)
class Captions(Suite):
    """CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726) and BLEU 1 to 4 (Papineni et al. 2002), both of the corpus.

        CIDEr-D   10 times the mean over 1- to 4-grams and references of the cosine of counts weighted by rarity,
                  clipped, times exp(-(difference of lengths)^2 / (2 * 6^2)); rare is what few pictures' references
                  have, so one picture alone gives 0
        BLEU-n    geometric mean of clipped precisions of 1- to n-grams, times the penalty of brevity, to the closest
                  reference

    How rare words are is settled over all answers first: intervals hold it fixed. Of several answers to a picture
    every one is scored, each in a corpus of its own.
    """

    name: ClassVar[str] = "captions"
    asks: ClassVar[Asks] = "texts"
    evidence: ClassVar[Evidence] = "words"
    main: ClassVar[str] = "CIDEr"

    prompt: str = PROMPT
    """What is asked of each picture."""

    def questions(self, prompts: bytes | None) -> Iterator[Question]:
        """JSON lines of captions (a list) and picture (a png in base64)."""
        how = "give JSON lines with captions (a list of texts) and picture (base64 of a png)"
        if not prompts:
            raise UserError(f"captions has no pictures of its own: {how}")
        for number, line in enumerate(prompts.decode().splitlines(), 1):
            if not line.strip():
                continue
            try:
                told = json.loads(line)
                picture, captions = base64.b64decode(told["picture"], validate=True), told["captions"]
            except (KeyError, TypeError, ValueError, binascii.Error) as error:
                raise UserError(f"line {number} of the captions cannot be read: {how}") from error
            if not captions or not all(isinstance(caption, str) and words(caption) for caption in captions):
                raise UserError(f"line {number} has an empty caption, or none: {how}")
            yield Question(prompt=self.prompt, task="captions", about={"captions": captions}, given=picture)

    def verdict(self, question: Question, evidence: Mapping[str, Any]) -> Verdict:
        """No score by itself; parts: the words of the answer and of the references, and what BLEU counts."""
        bleu_scorer = _library("bleu.bleu_scorer")
        said = " ".join(words(evidence["text"]))
        references = [" ".join(words(caption)) for caption in question.about["captions"]]
        counts = bleu_scorer.cook_test(said, bleu_scorer.cook_refs(references, n=_GRAMS), eff="closest", n=_GRAMS)
        bleu = [counts["testlen"], counts["reflen"], *counts["correct"], *counts["guess"]]
        return Verdict(score=math.nan, parts={"said": said, "references": references, "bleu": bleu})

    def settled(self, judged: Sequence[Judged]) -> Sequence[Judged]:
        """Each with its CIDEr-D among the references of all."""
        by_index: dict[int, list[int]] = {}
        for at, one in enumerate(judged):
            by_index.setdefault(one.index, []).append(at)
        scored = list(judged)
        for places in by_index.values():
            scorer = _library("cider.cider_scorer").CiderScorer(n=_GRAMS, sigma=6.0)
            for at in places:
                scorer += (judged[at].verdict.parts["said"], judged[at].verdict.parts["references"])
            _, found = scorer.compute_score()
            for at, score in zip(places, found, strict=True):
                scored[at] = replace(judged[at], verdict=replace(judged[at].verdict, score=float(score)))
        return scored

    def scores(self, judged: Sequence[Judged]) -> dict[str, float]:
        """CIDEr, the mean of settled answers, and Bleu_1 to Bleu_4."""
        if not judged:
            return {}
        cider = math.fsum(one.verdict.score for one in judged) / len(judged)
        rows = [one.verdict.parts["bleu"] for one in judged]
        length, closest, *counts = (sum(column) for column in zip(*rows, strict=True))
        return {"CIDEr": cider} | _bleu(length, closest, counts[:_GRAMS], counts[_GRAMS:])


def _bleu(length: float, closest: float, correct: Sequence[float], guessed: Sequence[float]) -> dict[str, float]:
    """Of a corpus, from its sums, as pycocoevalcap's BleuScorer ends."""
    ratio = (length + _TINY) / (closest + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, found = 1.0, {}
    for n, (right, all_) in enumerate(zip(correct, guessed, strict=True), 1):
        product *= (right + _TINY) / (all_ + _SMALL)
        found[f"Bleu_{n}"] = product ** (1 / n) * penalty
    return found


def _library(name: str) -> Any:
    """A module of pycocoevalcap; its scorers are plain Python, only its tokenizer, METEOR and SPICE want Java."""
    from importlib import import_module

    try:
        return import_module(f"pycocoevalcap.{name}")
    except ImportError as error:
        raise UserError("scores of captions need pycocoevalcap: pip install 'plait[captions]'") from error
