"""The composition suite on truth, on truth redrawn by tokenizers (the most that is possible), and on checkpoints.

    python -m benchmarks.composition truth [TOKENIZER ...]             folders of checkpoints of a tokenizer
    python -m benchmarks.composition scales TOKENIZER ...              redrawn from the first scales alone
    python -m benchmarks.composition patches 8:256 4:256 ...           side of a patch, number of codes
    python -m benchmarks.composition curve TEXT TOKENIZER MODEL ...    folders of checkpoints, one row each
    python -m benchmarks.composition finish TEXT TOKENIZER MODEL ...   of next-scale models: truth's first scales are
                                                                       given, the model draws the others

Each row is a task: the score, the 95 % interval of a bootstrap over prompts, and chance (stages/evaluate/
suite_composition.py). One thread. Checkpoints lie in <root>/checkpoints/NAME/<key>.<n>/step-NNNNNN.<nonce>/.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from models.any_to_any import AnyToAny, load_model
from models.generate.choosing import Chance, Sampling, last
from models.generate.pictures import Asked, painted, pictures
from models.generate.scales import scale_steps
from models.layout import finest, opened
from models.raster import TextTokenizer, size_text
from models.tokenizers import multiscale
from models.tokenizers.interface import Encoded, VisionTokenizer, load_tokenizer, to_bytes, to_pixels
from models.tokenizers.nextflow import NextFlowTokenizer
from models.tokenizers.scales import num_places
from models.tokenizers.text import load_text_tokenizer
from stages import sample_world as world
from stages.evaluate.detector_pixels import detected
from stages.evaluate.suite import Judged, Question
from stages.evaluate.suite_composition import Composition

BATCH, RESAMPLES = 60, 2000


def rendered(scene: world.Scene, seed: int, pixels: int) -> np.ndarray:
    """The scene as the corpus has it, so many pixels wide and high."""
    rng = np.random.default_rng(seed)
    layout = None
    while layout is None:
        layout = world.laid_out(rng, scene, 1, 1)
    picture = world.sensed(rng, world.drawn(world.ground(rng, scene.background, 128, 128), layout, 0.5))
    return cv2.resize(picture, (pixels, pixels), interpolation=cv2.INTER_AREA)


def encoded(tokenizer: VisionTokenizer, pictures: Sequence[np.ndarray]) -> Iterator[Encoded]:
    """What the tokenizer makes of them, batch by batch."""
    for start in range(0, len(pictures), BATCH):
        yield tokenizer.encode(to_pixels(torch.from_numpy(np.stack(pictures[start : start + BATCH])[:, None])))


def redrawn(tokenizer: VisionTokenizer, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Pictures through the tokenizer and back."""
    out: list[np.ndarray] = []
    for found in encoded(tokenizer, pictures):
        out += list(to_bytes(tokenizer.decode(found))[:, 0].numpy())
    return out


def begun(tokenizer: VisionTokenizer, pictures: Sequence[np.ndarray], num_scales: int) -> list[np.ndarray]:
    """Pictures through a next-scale tokenizer and back, from their first scales alone."""
    assert isinstance(tokenizer, NextFlowTokenizer)
    scales, out = tokenizer.scales(1, *pictures[0].shape[:2]), list[np.ndarray]()
    for found in encoded(tokenizer, pictures):
        assert found.ids is not None
        adds = list(multiscale.parts(found.ids, scales, scales[-1], tokenizer.lookup))[:num_scales]
        with torch.no_grad():
            pixels = tokenizer.decoder(tokenizer.added_up(adds)).clamp(-1, 1)
        out += list(to_bytes(pixels[:, None])[:, 0].numpy())
    return out


def patched(pictures: Sequence[np.ndarray], side: int, codes: int) -> list[np.ndarray]:
    """Pictures as the nearest of so many patches: k-means over patches of 1500 scenes of the corpus, without a network.

    Plain patches are most of a picture and say nothing of shapes: k-means sees those with an edge, and 2000 others.
    """
    rng, seen = np.random.default_rng(1), []
    while len(seen) < 1500:
        scene = world.imagined(rng, "still")
        seen.append(rendered(scene, len(seen), len(pictures[0])))
    every = _cut(np.stack(seen), side)
    spread = np.ptp(every.view(len(every), -1, 3).numpy(), axis=1).max(1)
    draw = torch.Generator().manual_seed(0)
    edges = every[torch.from_numpy(spread > 60)]
    plain = every[torch.randperm(len(every), generator=draw)[:2000]]
    learnt = torch.cat([edges[torch.randperm(len(edges), generator=draw)[:24_000]], plain])
    means = learnt[torch.randperm(len(learnt), generator=draw)[:codes]].clone()
    for _ in range(8):
        nearest = torch.cdist(learnt, means).argmin(1)
        sums, counts = torch.zeros_like(means).index_add_(0, nearest, learnt), torch.bincount(nearest, minlength=codes)
        means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], means)
    shown = means[torch.cdist(_cut(np.stack(pictures), side), means).argmin(1)]
    pixels = len(pictures[0])
    rows = pixels // side
    again = shown.view(-1, rows, rows, side, side, 3).permute(0, 1, 3, 2, 4, 5).reshape(-1, pixels, pixels, 3)
    return list(again.round().to(torch.uint8).numpy())


def _cut(pictures: np.ndarray, side: int) -> torch.Tensor:
    rows = pictures.shape[1] // side
    cut = torch.from_numpy(pictures).view(-1, rows, side, rows, side, 3).permute(0, 1, 3, 2, 4, 5)
    return cut.reshape(-1, side * side * 3).float()


def answers(
    model: AnyToAny,
    text: TextTokenizer,
    tokenizer: VisionTokenizer,
    prompts: Sequence[str],
    how: Sampling,
    pixels: int,
    sample: int = 0,
) -> list[np.ndarray]:
    """A picture for each prompt, from a seed of its own: that of its place, and of the number of the sample."""
    asked, out = Asked(grids=tokenizer.grids(1, pixels, pixels)), []
    for start in range(0, len(prompts), BATCH):
        some = prompts[start : start + BATCH]
        seeds = [sample * 10_000 + place for place in range(start, start + len(some))]
        out += [one[0] for one in pictures(model, tokenizer, text, some, how, seeds, asked)]
    return out


def finished(
    model: AnyToAny,
    text: TextTokenizer,
    tokenizer: VisionTokenizer,
    prompts: Sequence[str],
    how: Sampling,
    truth: Sequence[Encoded],
    num_known: int,
) -> list[np.ndarray]:
    """A picture for each prompt whose first `num_known` scales are those of its scene in `truth`."""
    grids, out = truth[0].grids, list[np.ndarray]()
    sides = [grid[1:] for grid in grids]
    for start, found in zip(range(0, len(prompts), BATCH), truth, strict=True):
        assert found.ids is not None
        known = found.ids[:, : num_places(sides[:num_known])]
        told, plain = (
            [opened([text.encode(said)], size_text(finest(grids)), model.form, text) for said in some]
            for some in (prompts[start : start + BATCH], [""] * len(known))
        )
        chance = Chance([*range(start, start + len(known))])
        drawn = last(scale_steps(model, told, sides, how, chance, plain, known=known))
        out += list(painted(tokenizer, drawn, grids)[:, 0])
    return out


def report(suite: Composition, questions: Sequence[Question], pictures: Sequence[np.ndarray]) -> None:
    """Judge and print: of pictures of all questions, once or several times; prompts are drawn with all of theirs."""
    samples = len(pictures) // len(questions)
    judged = [
        Judged(question=one.prompt, task=one.task, index=n, verdict=suite.verdict(one, detected(picture)))
        for n in range(samples)
        for one, picture in zip(questions, pictures[n * len(questions) : (n + 1) * len(questions)], strict=True)
    ]
    judged = list(suite.settled(judged))
    scores, rng = suite.scores(judged), np.random.default_rng(0)
    for task in dict.fromkeys(one.task for one in judged):
        of = np.array([one.verdict.score for one in judged if one.task == task]).reshape(samples, -1).T
        low, high = np.quantile(of[rng.integers(0, len(of), (RESAMPLES, len(of)))].mean((1, 2)), [0.025, 0.975])
        score, chance = scores[f"{suite.name}/{task}"], scores[f"{suite.name}/{task}_chance"]
        print(f"{task:>17} {score:6.3f}  {low:.3f} to {high:.3f}  chance {chance:.3f}  of {of.size}")
    print(f"{'overall':>17} {scores['composition/overall']:6.3f}  held {scores['composition/held']:.3f}", flush=True)


def main(given: argparse.Namespace) -> None:
    """Print the tables."""
    suite = Composition(prompts_per_task=given.prompts)
    questions = list(suite.questions(None))
    if given.what == "curve":
        curve(given, suite, questions)
        return
    scenes = [rendered(scene, seed, given.pixels) for seed, (_, scene) in enumerate(suite.scenes())]
    if given.what == "finish":
        finish(given, suite, questions, scenes)
        return
    if given.what == "truth":
        print("truth")
        report(suite, questions, scenes)
    for one in given.folders:
        for title, shown in possible(given.what, one, scenes):
            print(f"{title}: {one}")
            report(suite, questions, shown)


def possible(what: str, one: str, scenes: Sequence[np.ndarray]) -> Iterator[tuple[str, list[np.ndarray]]]:
    """The scenes as a tokenizer, the first scales of one, or patches can show them."""
    if what == "patches":
        side, codes = map(int, one.split(":"))
        yield f"patches of {side}x{side}, {codes} codes", patched(scenes, side, codes)
        return
    tokenizer = load_tokenizer(Path(one))
    if what == "truth":
        yield "redrawn", redrawn(tokenizer, scenes)
        return
    assert isinstance(tokenizer, NextFlowTokenizer), f"{one} has no scales"
    for count in range(1, len(tokenizer.scales(1, *scenes[0].shape[:2])) + 1):
        yield f"the first {count} scales of {tokenizer.shape.scales}", begun(tokenizer, scenes, count)


def said(given: argparse.Namespace) -> tuple[TextTokenizer, VisionTokenizer, Sampling]:
    """Both tokenizers, and how is drawn."""
    how = Sampling(temperature=given.temperature, top_k=given.top_k, guidance=given.guidance)
    return load_text_tokenizer(Path(given.folders[0])), load_tokenizer(Path(given.folders[1])), how


def curve(given: argparse.Namespace, suite: Composition, questions: Sequence[Question]) -> None:
    """What checkpoints draw."""
    text, tokenizer, how = said(given)
    for folder in given.folders[2:]:
        model, step = load_model(Path(folder))
        began = time.process_time()
        prompts, drawn = [one.prompt for one in questions], list[np.ndarray]()
        for sample in range(given.samples):
            drawn += answers(model, text, tokenizer, prompts, how, given.pixels, sample)
        print(f"step {step}, {time.process_time() - began:.0f} CPU s of drawing, {how}: {folder}")
        if given.sheet:
            rows = [np.concatenate(drawn[n : n + 10], 1) for n in range(0, len(prompts) - 9, given.prompts)]
            cv2.imwrite(f"{given.sheet}-{step:06d}.png", np.concatenate(rows)[..., ::-1])
        report(suite, questions, drawn)


def finish(
    given: argparse.Namespace, suite: Composition, questions: Sequence[Question], scenes: Sequence[np.ndarray]
) -> None:
    """What checkpoints make of truth's first scales: where among the scales it goes wrong."""
    text, tokenizer, how = said(given)
    truth = list(encoded(tokenizer, scenes))
    prompts = [one.prompt for one in questions]
    for folder in given.folders[2:]:
        model, step = load_model(Path(folder))
        for num_known in range(len(truth[0].grids)):
            print(f"step {step}, {num_known} of truth's scales, {how}: {folder}")
            report(suite, questions, finished(model, text, tokenizer, prompts, how, truth, num_known))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["truth", "scales", "patches", "curve", "finish"])
    parser.add_argument("folders", nargs="*", help="folders of checkpoints, or SIDE:CODES")
    parser.add_argument("--pixels", type=int, default=64, help="of a side: what the checkpoints were trained on")
    parser.add_argument("--prompts", type=int, default=60, help="of each task")
    parser.add_argument("--samples", type=int, default=1, help="pictures of each prompt")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--sheet", help="beginning of the names of sheets of drawings")
    torch.set_num_threads(1)
    main(parser.parse_args())
