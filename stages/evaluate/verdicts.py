"""Judging what needs no one else: pixels, words, features, and what a detector sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa

from infra.types import UserError
from stages import weights
from stages.base import Edge, Kit, Outcome, Row, RowStage, since
from stages.evaluate.judge import Itself, Judge
from stages.evaluate.judging import ANSWER_COLUMNS, VERDICT_SCHEMA, judged_by_suite
from stages.evaluate.suite import Evidence
from stages.evaluate.suites import Options, class_of, meant

_EVIDENCE: tuple[Evidence, ...] = ("pixels", "words", "objects", "features")
_OWN_DETECTOR = ("composition",)
"""Suites whose things the detector without weights knows."""
_REAL_WORLD = ("geneval", "t2i_spatial")
"""Suites whose things a detector with weights may know."""
_INSTEAD = {
    "pictures_fid": ", or verdicts.inception=FILE",
    **dict.fromkeys(("clip_score", "background_consistency"), ", or verdicts.clip=DIR"),
    "subject_consistency": ", or verdicts.encoder=DIR",
    **dict.fromkeys(_REAL_WORLD, ", or verdicts.detector=DIR"),
}


@dataclass(frozen=True, kw_only=True)
class Verdicts(RowStage):
    """One verdict per answer whose evidence this machine finds by itself, or that was recorded.

    pixels, words   the answer itself, nothing but arithmetic: the judge is called "measured"
    objects         of a detector without weights, which knows the shapes of the sample corpus alone: "pixels@REVISION";
                    for the suites of a real world a model's of transformers, where `detector` names its folder
                    (stages/evaluate/judge_detector.py), or recorded ones
    features        16 x 16 pixels, of FID's Inception where `inception` names its weights, of `clip` for clip_score and
                    background_consistency, of `encoder` for subject_consistency
    recorded        JSON lines of another tool (stages/evaluate/judge_recorded.py), before all others
    """

    writes: ClassVar[str] = "verdicts"
    inputs: ClassVar[tuple[Edge, ...]] = (
        Edge("generations", columns=ANSWER_COLUMNS, where="evidence in ('pixels', 'words', 'objects', 'features')"),
    )
    schema: ClassVar[pa.Schema] = VERDICT_SCHEMA

    options: Options = field(default_factory=dict)
    """The suites' own settings."""
    recorded: Mapping[str, str] = field(default_factory=dict)
    """Files of recorded evidence, by suite."""
    inception: str | None = None
    """FID's Inception v3 as safetensors, for pictures_fid."""
    detector: str | None = since(None)
    """Folder of an object detector of transformers, for geneval and t2i_spatial."""
    clip: str | None = since(None)
    """Folder of a CLIP of transformers, which names the colours for geneval, and scores for clip_score and
    background_consistency."""
    encoder: str | None = since(None)
    """Folder of an encoder of pictures of transformers (DINO), for subject_consistency."""

    def settings(self) -> dict[str, Any]:
        """Files by what they hold; with the detector's revision: what means something else has another key."""
        from stages.evaluate.detector_pixels import REVISION

        files = {name: weights.named(path) for name, path in self.recorded.items()}
        inception = weights.named(self.inception) if self.inception else None
        own = {"recorded": files, "inception": inception, "detector": f"pixels@{REVISION}"}
        told = super().settings() | own | meant(self.options, _EVIDENCE)
        return {name: value for name, value in told.items() if name not in ("clip", "encoder")} | self._models()

    def _models(self) -> dict[str, Any]:
        """The models of transformers by what they hold; nothing where there are none."""
        places = {"detector": self.detector, "clip": self.clip, "encoder": self.encoder}
        given = {name: place for name, place in places.items() if place is not None}
        if not given:
            return {}
        from stages.evaluate.judge_detector import REVISION, digest

        return {"models": {name: digest(place, name) for name, place in given.items()} | {"revision": REVISION}}

    def setup(self, kit: Kit) -> dict[str, Judge]:
        """Judges by suite; each is made when it is first asked."""
        return {}

    def process(self, rows: Sequence[Row], tools: Any) -> Sequence[Outcome]:
        """Answers of one suite together."""
        return judged_by_suite(rows, tools, self._judge, self.options)

    def _encoder(self, name: str) -> Judge | None:
        """What gives features for the suite, where there is something."""
        from stages.evaluate import judge_features

        if name == "pictures_pixels":
            return judge_features.Pixels()
        if name == "clip_score" and self.clip:
            return judge_features.ClipFeatures(self.clip)
        if name == "background_consistency" and self.clip:
            return judge_features.FrameFeatures(self.clip, "clip")
        if name == "subject_consistency" and self.encoder:
            return judge_features.FrameFeatures(self.encoder, "encoder")
        if name == "pictures_fid" and self.inception:
            return judge_features.InceptionFeatures(self.inception)
        return None

    def _judge(self, name: str) -> Judge:
        gives = class_of(name).evidence
        if name in self.recorded:
            from stages.evaluate.judge_recorded import Recorded

            return Recorded(self.recorded[name], gives)
        if gives in ("pixels", "words"):
            return Itself(gives)
        if gives == "objects" and name in _OWN_DETECTOR:
            from stages.evaluate.judge_pixels import PixelDetector

            return PixelDetector()
        if found := self._encoder(name):
            return found
        if name in _REAL_WORLD and self.detector:
            from stages.evaluate.judge_detector import Detector

            if name == "geneval" and self.clip is None:
                raise UserError("geneval asks for colours, which the detector does not tell: add verdicts.clip=DIR")
            return Detector(self.detector, self.clip)
        raise UserError(
            f"nobody here can judge {name}, which rests on {gives}: give verdicts.recorded={{{name}: FILE}} of"
            " another tool's" + _INSTEAD.get(name, "")
        )
