"""Text in pictures: where it is and what it says. RapidOCR, one thread, models from its wheel. Not a stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

REVISION = 2
"""Bumped when other text is found; in the key of what it decides."""
SHORT_SIDE = 256
"""Pictures are shrunk to this short side (pixels): large enough for subtitles at 720p, 20 times cheaper than the
detector's default of 736. Smaller pictures are not enlarged: the detector finds the same lines at 128 pixels as at
256 (tests), at a quarter of the cost."""

_THICK, _THICKEST = 1 / 3, 1 / 2
_LINE = (1.5, 3.0)
"""A line of text is 1.5 times as long as thick, and 3 times where it is thicker than a third of the short side.
On small pictures without text the detector is prone to a box around a square thing, or around everything (a cat,
coins, a flower; tests). Up to half of the short side, a box that is less long counts where the detector sees it in the
picture at half its size too: large letters stay (a number on a shirt), both false ones of the shared data vanish."""
_SAME = 0.5
"""Area in common over area of both, from which two boxes are one thing."""
_SURE = 0.9
"""Mean confidence from which a line counts as read: on pictures without text the recogniser stays under 0.9."""
_LEAST_LETTERS = 2
_MOST_LINES = 12
_MOST_LETTERS = 60


def engine() -> Any:
    """The text detector, once per worker; its recogniser is loaded when first asked. No network, no log."""
    import rapidocr

    models = Path(rapidocr.__file__).parent / "models"
    found = [sorted(models.glob(f"*_{part}_*.onnx")) for part in ("det", "rec")]
    if not all(found):
        raise FileNotFoundError("The rapidocr wheel lacks its detector or recogniser: install rapidocr 3.10 from PyPI.")
    return rapidocr.RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.use_cls": False,
            "Global.use_rec": False,
            "Det.model_path": str(found[0][0]),
            "Rec.model_path": str(found[1][0]),
            "Det.limit_side_len": 32,  # with limit_type min: never enlarge; 32 is the network's stride
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )


def lines(ocr: Any, picture: np.ndarray) -> list[np.ndarray]:
    """Corners [4, (x, y)] of each line of text in a picture (uint8 RGB [H, W, 3]), in order of reading."""
    import numpy as np

    kept, doubtful = [], []
    for box in _boxes(ocr, picture):
        sides = np.linalg.norm(np.diff(box[:3], axis=0), axis=1)
        thickness, length = min(sides) / min(picture.shape[:2]), max(sides) / max(min(sides), 1e-6)
        if length >= _LINE[bool(thickness > _THICK)]:
            kept.append(box)
        elif length >= _LINE[0] and thickness <= _THICKEST:
            doubtful.append(len(kept))
            kept.append(box)
    if not doubtful:
        return kept
    seen = _boxes_at_half_size(ocr, picture)
    return [box for i, box in enumerate(kept) if i not in doubtful or any(_is_same(box, other) for other in seen)]


def _boxes(ocr: Any, picture: np.ndarray) -> list[np.ndarray]:
    found = ocr(picture[..., ::-1], use_det=True, use_cls=False, use_rec=False)
    return list(found.boxes) if found.boxes is not None else []


def _boxes_at_half_size(ocr: Any, picture: np.ndarray) -> list[np.ndarray]:
    import cv2

    height, width = picture.shape[:2]
    half = cv2.resize(picture, (max(1, width // 2), max(1, height // 2)), interpolation=cv2.INTER_AREA)
    return [box * (width / half.shape[1], height / half.shape[0]) for box in _boxes(ocr, half)]


def _is_same(one: np.ndarray, other: np.ndarray) -> bool:
    import cv2

    one, other = one.astype("float32"), other.astype("float32")
    common = cv2.intersectConvexConvex(one, other)[0]
    return common >= _SAME * (cv2.contourArea(one) + cv2.contourArea(other) - common)


def text(ocr: Any, picture: np.ndarray) -> str:
    """What the lines of a picture say, about the first 60 characters of it; empty where nothing is read for sure."""
    import numpy as np
    from rapidocr.utils.process_img import get_rotate_crop_image

    said, turned = "", np.ascontiguousarray(picture[..., ::-1])
    for box in lines(ocr, picture)[:_MOST_LINES]:
        strip = get_rotate_crop_image(turned, box.astype(np.float32))
        if 0 in strip.shape:
            continue
        read = ocr(strip, use_det=False, use_cls=False, use_rec=True)
        line, score = (read.txts[0], read.scores[0]) if read.txts else ("", 0.0)
        if score >= _SURE and sum(letter.isalnum() for letter in line) >= _LEAST_LETTERS:
            said = f"{said} {_plain(line)}".strip()
        if len(said) > _MOST_LETTERS:
            break
    return _shortened(said)


def _plain(line: str) -> str:
    """The line on one line, in marks that cannot end a quotation."""
    shown = "".join(letter if letter.isprintable() else " " for letter in line)
    return " ".join(shown.replace('"', "'").split())


def _shortened(said: str) -> str:
    if len(said) <= _MOST_LETTERS:
        return said
    head = said[: _MOST_LETTERS + 1]
    return (head.rpartition(" ")[0] or head[:-1]) + "..."
