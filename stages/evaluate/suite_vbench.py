"""VBench (Huang et al. 2024, arXiv 2311.17982): its dimensions that need no weights, and its total of sixteen.

After Vchitect/VBench@45e79ec1: vbench/*.py for dimensions, scripts/constant.py and cal_final_score.py for the total.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from infra.types import BadRow, UserError
from stages.evaluate.suite import Asks, Evidence, Judged, Question, Suite, Verdict

QUALITY: Mapping[str, tuple[float, float, float]] = {
    "subject consistency": (0.1462, 1.0, 1.0),
    "background consistency": (0.2615, 1.0, 1.0),
    "temporal flickering": (0.6293, 1.0, 1.0),
    "motion smoothness": (0.706, 0.9975, 1.0),
    "aesthetic quality": (0.0, 1.0, 1.0),
    "imaging quality": (0.0, 1.0, 1.0),
    "dynamic degree": (0.0, 1.0, 0.5),
}
"""Least, most and weight of the dimensions of quality,"""
SEMANTIC: Mapping[str, tuple[float, float, float]] = {
    "object class": (0.0, 1.0, 1.0),
    "multiple objects": (0.0, 1.0, 1.0),
    "human action": (0.0, 1.0, 1.0),
    "color": (0.0, 1.0, 1.0),
    "spatial relationship": (0.0, 1.0, 1.0),
    "scene": (0.0, 0.8222, 1.0),
    "appearance style": (0.0009, 0.2855, 1.0),
    "temporal style": (0.0, 0.364, 1.0),
    "overall consistency": (0.0, 0.364, 1.0),
}
"""and of those of meaning."""
_QUALITY_WEIGHT, _SEMANTIC_WEIGHT = 4, 1

FLICKERING = "temporal_flickering[unfiltered]"
DYNAMIC = "dynamic_degree[farneback]"
SMOOTHNESS = "motion_smoothness[farneback]"
_MEASURED = {"temporal_flickering": FLICKERING, "dynamic_degree": DYNAMIC, "motion_smoothness": SMOOTHNESS}
_FLOW_FPS = 8.0
"""Frames a second between which motion is asked for."""
_FASTEST = 0.05
"""Share of the pixels, the fastest, whose mean flow counts."""

_Frames = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class VBench(Suite):
    """Of its prompts those whose films can be measured by arithmetic alone; the published five films of each.

        temporal_flickering[unfiltered]  (255 - mean absolute difference of neighbouring frames) / 255. The published
                                         score leaves out films that RAFT finds moving; here all count, so that motion
                                         lowers it
        dynamic_degree[farneback]        share of films that move: of pairs at 8 frames a second, a quarter of the
                                         frames have a mean flow of the fastest 5 % of pixels above 6 pixels at a short
                                         side of 256. Published with RAFT; Farneback's flow is shorter in flat areas
        motion_smoothness[farneback]     (255 - mean absolute difference of every other frame to what is interpolated
                                         from its neighbours) / 255; published with AMT-S

    None of them enters the published total (`total`), which takes the sixteen by their own names.
    """

    name: ClassVar[str] = "vbench"
    asks: ClassVar[Asks] = "films"
    evidence: ClassVar[Evidence] = "pixels"
    main: ClassVar[str] = FLICKERING

    fps: float = 8.0
    """Frames a second of films that do not say."""

    def __post_init__(self) -> None:
        if not self.fps > 0:
            raise UserError(f"vbench.fps is {self.fps}: give a number above 0")

    def questions(self, prompts: bytes | None) -> Iterator[Question]:
        """Prompts of VBench_full_info.json that ask for a dimension measured here."""
        for prompt, asked in told_by(prompts, self.name):
            dimensions = [name for name in asked if name in _MEASURED]
            if dimensions:
                yield Question(prompt=prompt, task=" ".join(dimensions), about={"dimensions": dimensions})

    def verdict(self, question: Question, evidence: Mapping[str, Any]) -> Verdict:
        """Parts: each dimension; the score is their mean, for sorting only."""
        frames, fps = evidence["frames"], float(evidence.get("fps") or self.fps)
        if len(frames) < 2:
            raise BadRow(f"A film of {len(frames)} frames has no motion to measure.")
        measures = {
            "temporal_flickering": lambda: flickering(frames),
            "dynamic_degree": lambda: float(moves(frames, fps)),
            "motion_smoothness": lambda: smoothness(frames),
        }
        parts = {_MEASURED[name]: measures[name]() for name in question.about["dimensions"]}
        return Verdict(score=math.fsum(parts.values()) / len(parts), parts=parts)

    def scores(self, judged: Sequence[Judged]) -> dict[str, float]:
        """Means of the dimensions over films."""
        found: dict[str, list[float]] = {}
        for one in judged:
            for name, value in one.verdict.parts.items():
                found.setdefault(name, []).append(value)
        return {name: math.fsum(found[name]) / len(found[name]) for name in _MEASURED.values() if name in found}


def told_by(prompts: bytes | None, suite: str) -> list[tuple[str, list[str]]]:
    """The prompts of VBench_full_info.json, each with the dimensions that it asks for."""
    how = "give vbench/VBench_full_info.json of Vchitect/VBench"
    if not prompts:
        raise UserError(f"{suite} has no prompts of its own: {how}")
    try:
        return [(one["prompt_en"], list(one["dimension"])) for one in json.loads(prompts)]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{suite}'s prompts cannot be read: {how}") from error


def total(dimensions: Mapping[str, float]) -> dict[str, float]:
    """quality, semantic and total of dimensions (0 to 1) by their published names, with spaces or underscores.

        x = weight (value - least) / (most - least)      each group: sum x / sum weight      total = (4 q + s) / 5

    What lacks a dimension is left out; the published script would take it for 0.
    """
    given = {name.replace("_", " "): value for name, value in dimensions.items()}
    found = {
        name: math.fsum(w * (given[d] - low) / (high - low) for d, (low, high, w) in group.items())
        / math.fsum(w for _, _, w in group.values())
        for name, group in (("quality", QUALITY), ("semantic", SEMANTIC))
        if given.keys() >= group.keys()
    }
    if len(found) == 2:
        both = _QUALITY_WEIGHT * found["quality"] + _SEMANTIC_WEIGHT * found["semantic"]
        found["total"] = both / (_QUALITY_WEIGHT + _SEMANTIC_WEIGHT)
    return found


def flickering(frames: _Frames) -> float:
    """(255 - mean over pairs of the mean absolute difference) / 255; 1 where nothing changes."""
    return (255 - float(np.mean([_difference(a, b) for a, b in pairwise(frames)]))) / 255


def moves(frames: _Frames, fps: float) -> bool:
    """Whether a film moves, by the flow of its frames at 8 a second."""
    sampled = frames[:: max(1, round(fps / _FLOW_FPS))]
    threshold = 6.0 * min(frames.shape[1:3]) / 256
    fast = sum(_fastest(_flow(a, b)) > threshold for a, b in pairwise(sampled))
    # the published loop asks after each pair whether enough were fast, so that one pair is asked for at least once
    return len(sampled) > 1 and fast >= round(4 * len(sampled) / 16)


def smoothness(frames: _Frames) -> float:
    """(255 - mean absolute difference of every other frame to the one between its neighbours) / 255."""
    kept = frames[::2]
    pairs = zip(kept[:-1], kept[1:], frames[1::2], strict=False)
    differences = [_difference(_between(a, b), true) for a, b, true in pairs]
    if not differences:
        raise BadRow(f"A film of {len(frames)} frames has none between two others.")
    return (255 - float(np.mean(differences))) / 255


def consistency(features_TD: NDArray[np.floating]) -> float:
    """How alike the frames of a film stay, by features (T frames, D): the mean over frames but the first of the mean of
    the cosines to the frame before and to the first, none below 0. With DINO ViT-B/16's features it is VBench's subject
    consistency, with CLIP ViT-B/32's its background consistency; name it by its encoder."""
    if len(features_TD) < 2:
        raise BadRow("A film of one frame has nothing to be consistent with.")
    unit = features_TD / np.linalg.norm(features_TD, axis=1, keepdims=True)
    before = np.maximum((unit[1:] * unit[:-1]).sum(axis=1), 0)
    first = np.maximum(unit[1:] @ unit[0], 0)
    return float(((before + first) / 2).mean())


def _difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.abs(one.astype(np.float32) - other.astype(np.float32)).mean())


def _flow(before: _Frames, after: _Frames) -> NDArray[np.float32]:
    """Dense flow (H, W, 2), pixels (Farneback 2003, with the parameters of OpenCV's tutorial)."""
    import cv2

    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (before, after)]
    start: Any = None
    return np.asarray(cv2.calcOpticalFlowFarneback(grey[0], grey[1], start, 0.5, 3, 15, 3, 5, 1.2, 0), np.float32)


def _fastest(flow_HW2: NDArray[np.float32]) -> float:
    """Mean length of the fastest 5 % of pixels; 0 of a picture too small to have any."""
    lengths = np.sort(np.hypot(flow_HW2[..., 0], flow_HW2[..., 1]).ravel())
    num = int(lengths.size * _FASTEST)
    return float(lengths[-num:].mean()) if num else 0.0


def _between(before: _Frames, after: _Frames) -> NDArray[np.float32]:
    """The frame halfway: both brought half the way along the flow between them, and averaged."""
    import cv2

    height, width = before.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    halves: list[NDArray[np.float32]] = []
    for frame, flow in ((before, _flow(before, after)), (after, _flow(after, before))):
        moved = cv2.remap(
            frame, x - flow[..., 0] / 2, y - flow[..., 1] / 2, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        halves.append(np.asarray(moved, np.float32))
    return (halves[0] + halves[1]) * np.float32(0.5)
