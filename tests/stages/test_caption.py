"""The pixel captioner says what the truth says; the endpoint captioner keeps the world's faults off the rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from infra.types import UserError
from stages import reading
from stages import sample_world as world
from stages.base import BadRow, TransientError
from stages.caption import pixels, vlm_endpoint
from stages.caption.caption import Captions
from stages.clip import Clips
from tests.stages.conftest import Corpus
from tests.stages.endpoint_server import Endpoint, said

UNNAMEABLE = {"text_heavy", "low_quality", "too_fast"}


def test_captions_equal_the_truth(corpus: Corpus, corpus_clips: dict[str, list[dict[str, Any]]]) -> None:
    stage = Captions()
    tools = stage.setup(None)  # type: ignore[arg-type]
    right: dict[str, list[bool]] = {"image": [], "video": []}
    for name, clips in corpus_clips.items():
        told = corpus.truth["files"][name]
        scenes = told.get("scenes", [told | {"start": 0, "end": 1}])
        if len(scenes) != len(clips):
            continue
        for scene, (row,) in zip(scenes, stage.process(clips, tools), strict=True):
            if not UNNAMEABLE & {*scene["trouble"], *told["trouble"]}:
                right[told["kind"]].append(row["text"] == scene["caption"])
    assert np.mean(right["image"]) > 0.98 and len(right["image"]) > 100
    assert np.mean(right["video"]) > 0.93 and len(right["video"]) > 80


def test_fresh_worlds_are_read_back() -> None:
    """Scenes that the corpus never holds, held-back pairs included: the captioner does not know them by heart."""
    rng = np.random.default_rng(123)
    right, pairs = 0, [(shape, colour) for shape in world.SHAPES for colour in world.COLOURS]
    for shape, colour in pairs:
        scene = world.Scene(
            ((world.Thing(shape, colour, "large"), 1),), None, str(rng.choice(["white", "black"])), "left"
        )
        layout = None
        while layout is None:
            layout = world.laid_out(rng, scene, 1.5, 1)
        ground = world.ground(rng, scene.background, 128, 192)
        shots = [world.sensed(rng, world.drawn(ground, layout, when)) for when in np.linspace(0, 1, 8)]
        right += pixels.caption(shots) == scene.caption(moving=True)
    assert right >= len(pairs) - 1


def test_plain_and_real_pictures() -> None:
    assert pixels.caption([np.full((64, 64, 3), 250, np.uint8)]) == "a plain white picture"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    said = pixels.caption([noise, noise])
    assert said.startswith("an evenly lit scene") and said.endswith("hardly moving")


def test_wording_is_the_worlds() -> None:
    assert tuple(world.COLOURS) == pixels._COLOURS and world.SHAPES == pixels._SHAPES
    thing = world.Thing("circle", "red", "large")
    other = world.Thing("square", "blue", "small")
    said = world.sentence(((thing, 1), (other, 1)), "to the left of", "white", "right")
    assert said == "a large red circle to the left of a small blue square on a white background, moving right"


def test_text_is_read_only_where_shapes_are_not_all() -> None:
    asked = []

    def text() -> str:
        asked.append(True)
        return "HELLO"

    plain = np.full((160, 160, 3), 250, np.uint8)
    plain[40:70, 40:70] = (220, 20, 20)
    assert pixels.caption([plain], text) == "a small red square on a white background" and not asked
    for column in range(20, 140, 6):
        plain[120:130, column : column + 3] = 0
    assert pixels.caption([plain], text) == 'a small red square on a white background, with the text "HELLO"'
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    assert pixels.caption([noise, noise], text).endswith(', hardly moving, with the text "HELLO"')
    assert len(asked) == 2 and "text" not in pixels.caption([noise])


def captioned(clip: dict[str, Any]) -> str:
    stage = Captions()
    return stage.process([clip], stage.setup(None))[0][0]["text"]  # type: ignore[arg-type]


def a_still(path: Path) -> dict[str, Any]:
    return {"media": path.read_bytes(), "source_kind": "image", "num_frames": 1, "held_out": False}


def test_words_that_are_there_are_in_the_caption(
    shared: Path, video_row: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    infographic, page = (
        captioned(a_still(shared / "images" / f"{n}.png")) for n in ("text_english_infographic", "page")
    )
    assert 'with the text "Reduce your risk of coronavirus infection' in infographic
    assert 'with the text "Region-based segmentation' in page and page.isascii()
    clips = Clips().process([video_row(shared / "videos" / "counter.mp4")], None)[0]
    assert all('with the text "Frame = ' in captioned(clip) for clip in clips)
    image = Image.new("RGB", (480, 320), "white")
    for size in (14, 16, 18, 22):
        shown = image.copy()
        ImageDraw.Draw(shown).text((60, 150), 'see "fine print"', fill="black", font=ImageFont.load_default(size))
        shown.save(tmp_path / "print.png")
        assert """, with the text "see 'fine print""" in captioned(a_still(tmp_path / "print.png"))


@pytest.mark.parametrize(
    "name", ["astronaut.png", "chelsea.png", "coffee.png", "coins.png", "rocket.jpg", "coco_785.jpg"]
)
def test_no_text_where_there_is_none(shared: Path, name: str) -> None:
    said = captioned(a_still(shared / "images" / name))
    assert "scene, mostly" in said and "text" not in said


def test_brightness_is_said(shared: Path) -> None:
    names = ("rocket.jpg", "camera.png", "mdn_hummingbird.jpg")
    tones = ("a dark scene", "an evenly lit scene", "a bright scene")
    for name, tone in zip(names, tones, strict=True):
        assert captioned(a_still(shared / "images" / name)).startswith(tone)


def test_long_text_is_cut_between_words() -> None:
    assert reading._shortened("a" * 60) == "a" * 60
    assert reading._shortened("word " * 11 + "words more") == "word " * 11 + "words..."
    assert reading._shortened("a" * 70) == "a" * 60 + "..."


def test_key_of_the_captioner() -> None:
    assert Captions().settings() == Captions(model="other", temperature=1.0).settings()
    asking = Captions(captioner="openai")
    assert asking.settings()["prompt_digest"] == asking.prompt_digest() != ""
    assert asking.settings() != Captions(captioner="openai", model="other").settings()
    with pytest.raises(UserError, match="describe"):
        Captions(captioner="openai", prompt="nosuch").settings()


def test_batches_do_not_matter(corpus_clips: dict[str, list[dict[str, Any]]]) -> None:
    clips = [clip for name in sorted(corpus_clips)[:12] for clip in corpus_clips[name][:1]][-10:]
    clips[3] = clips[3] | {"media": b"broken"}
    stage = Captions()
    together = stage.process(clips, stage.setup(None))  # type: ignore[arg-type]
    alone = [stage.process([clip], stage.setup(None))[0] for clip in clips]  # type: ignore[arg-type]
    assert isinstance(together[3], BadRow) and isinstance(alone[3], BadRow)
    assert together[:3] + together[4:] == alone[:3] + alone[4:]
    assert set(together[0][0]) == set(Captions.schema.names)


@pytest.fixture
def clips(corpus_clips: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [corpus_clips["videos/film_000.mp4"][0], *(corpus_clips[f"stills/still_{n:05d}.png"][0] for n in range(4))]


def behind(**patience: Any) -> vlm_endpoint.Endpoint:
    """The captioner over a client of this patience."""
    return vlm_endpoint.Endpoint(vlm_endpoint.connected(**patience), Captions(captioner="openai").question())


def test_the_endpoint_gets_frames_and_gives_rows(endpoint: Endpoint, clips: list[dict[str, Any]]) -> None:
    stage = Captions(captioner="openai", model="m", num_frames=3)
    rows = stage.process(clips[:2], stage.setup(None))  # type: ignore[arg-type]
    assert [row[0]["text"] for row in rows] == ["a cat", "a cat"]
    assert [row[0]["num_frames"] for row in rows] == [3, 1]
    assert rows[0][0]["captioner"] == "m" and rows[0][0]["prompt_digest"] == stage.prompt_digest()
    contents = sorted((r["messages"][0]["content"] for r in endpoint.requests), key=len)
    assert [[part["type"] for part in content] for content in contents] == [
        ["image_url", "text"],
        ["image_url"] * 3 + ["text"],
    ]
    assert contents[0][0]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert endpoint.requests[0]["path"] == "/v1/chat/completions" and endpoint.requests[0]["temperature"] == 0


def test_a_passing_fault_is_tried_again(endpoint: Endpoint, clips: list[dict[str, Any]]) -> None:
    endpoint.answer = lambda body, number: (503, {}) if number <= 2 else (200, said("late"))
    stage = Captions(captioner="openai")
    assert stage.process(clips[1:2], behind(retries=3))[0][0]["text"] == "late"
    assert len(endpoint.requests) == 3


@pytest.mark.parametrize("status", [429, 500, 503, 401, 404])
def test_the_endpoints_fault_is_no_rows(endpoint: Endpoint, clips: list[dict[str, Any]], status: int) -> None:
    endpoint.answer = lambda body, number: (status, {"error": {"message": "no"}})
    with pytest.raises(TransientError, match=str(status)):
        Captions(captioner="openai").process(clips[1:2], behind(retries=1))


def test_nobody_there(monkeypatch: pytest.MonkeyPatch, clips: list[dict[str, Any]]) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "word")
    with pytest.raises(TransientError, match="cannot be reached"):
        Captions(captioner="openai").process(clips[1:2], behind(retries=0, timeout_s=2))
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(TransientError, match="OPENAI_API_KEY"):
        vlm_endpoint.connected()


def test_one_rows_fault_takes_its_place_only(endpoint: Endpoint, clips: list[dict[str, Any]]) -> None:
    def answer(body: dict[str, Any], number: int) -> tuple[int, dict[str, Any]]:
        frames = len(body["messages"][0]["content"]) - 1
        return (400, {"error": {"message": "too many pictures"}}) if frames > 1 else (200, said("fine"))

    endpoint.answer = answer
    stage = Captions(captioner="openai")
    client = behind(retries=0)
    broken = clips[1] | {"media": b"broken"}
    first, second, third = stage.process([clips[0], clips[1], broken], client)
    assert isinstance(first, BadRow) and "too many pictures" in str(first) and "word" not in str(first)
    assert second[0]["text"] == "fine" and isinstance(third, BadRow)
    for reply in (said(""), said(None, refusal="I cannot"), said("  \n")):
        endpoint.answer = lambda body, number, reply=reply: (200, reply)
        assert isinstance(stage.process(clips[1:2], client)[0], BadRow)


def test_a_model_of_transformers_describes_clips_in_one_call(tmp_path: Path, clips: list[dict[str, Any]]) -> None:
    from stages.caption.vlm_transformers import Local
    from tests.stages import tiny_models

    folder = tiny_models.vlm(tmp_path / "vlm")
    stage = Captions(captioner="transformers", model=str(folder), max_tokens=8, num_frames=2)
    tools = stage.setup(None)  # type: ignore[arg-type]
    assert isinstance(tools, Local)
    calls: list[int] = []
    generate = tools._model.generate

    def counted(**given: Any) -> Any:
        calls.append(len(given["input_ids"]))
        return generate(**given)

    tools._model.generate = counted
    rows = stage.process([clips[0], clips[1] | {"media": b"broken"}, *clips[2:4]], tools)
    assert calls == [3] and isinstance(rows[1], BadRow)
    made = [row[0] for row in (rows[0], *rows[2:]) if isinstance(row, list)]
    assert len(made) == 3 and all(set(row) == set(Captions.schema.names) for row in made)
    assert len({row["text"] for row in made}) > 1  # it looks at the pictures
    alone = stage.process([clips[0]], tools)[0]
    assert alone[0]["text"] == rows[0][0]["text"]  # type: ignore[index]
    moved = folder.rename(tmp_path / "elsewhere")
    assert Captions(captioner="transformers", model=str(moved)).model_name() == made[0]["captioner"]


def test_short_clips_are_looked_at_more_closely(clips: list[dict[str, Any]]) -> None:
    stage = Captions(short_clip_s=20.0)
    (film,), (still,) = stage.process(clips[:2], stage.setup(None))  # type: ignore[arg-type]
    assert (film["num_frames"], still["num_frames"]) == (12, 1)
    assert "short_clip_s" not in Captions().settings() and "short_clip_s" in stage.settings()
