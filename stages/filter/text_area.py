"""How much of a picture is text: RapidOCR's detector alone (no recognition), one thread, model from its wheel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

SHORT_SIDE = 256
"""Pictures are shrunk to this short side (pixels): large enough for subtitles at 720p, 20 times cheaper than the
detector's default of 736. Smaller pictures are not enlarged: the detector finds the same lines at 128 pixels as at
256 (tests), at a quarter of the cost."""

_THICK = 1 / 3
_LINE = (1.5, 3.0)
"""A line of text is 1.5 times as long as thick, and 3 times where it is thicker than a third of the short side.
On small pictures without text the detector is prone to a box around a square thing, or around everything (a cat,
coins, a flower; tests)."""


def detector() -> Any:
    """The text detector, once per worker. Loads nothing from the network and logs nothing."""
    import rapidocr

    found = sorted((Path(rapidocr.__file__).parent / "models").glob("*_det_*.onnx"))
    if not found:
        raise FileNotFoundError("The rapidocr wheel holds no detection model: install rapidocr 3.10 from PyPI.")
    return rapidocr.RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.use_cls": False,
            "Global.use_rec": False,
            "Det.model_path": str(found[0]),
            "Det.limit_side_len": 32,  # with limit_type min: never enlarge; 32 is the network's stride
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )


def text_area(detect: Any, picture: np.ndarray) -> float:
    """Share of the picture (uint8 RGB [H, W, 3]) inside text boxes, 0 to 1; overlapping boxes count once."""
    import cv2
    import numpy as np

    found = detect(picture[..., ::-1], use_det=True, use_cls=False, use_rec=False)
    if found.boxes is None or len(found.boxes) == 0:
        return 0.0
    mask = np.zeros(picture.shape[:2], np.uint8)
    for box in found.boxes:
        sides = np.linalg.norm(np.diff(box[:3], axis=0), axis=1)
        if max(sides) < _LINE[bool(min(sides) > _THICK * min(mask.shape))] * min(sides):
            continue
        cv2.fillPoly(mask, [np.rint(box).astype(np.int32)], 1)
    return float(mask.mean())
