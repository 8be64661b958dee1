"""Drawing: with the cache over without, and scale by scale over code by code. In turn, in one process.

    python -m benchmarks.sampling --runs 5

cached     1024 tokens after a prompt are drawn greedily, with the cache and with a whole pass for each. Without it that
           would take minutes: it is timed at evenly spaced lengths (`--probes`) and summed by the trapezoid rule.
           Target: at least 5 times as fast.
scales     one picture on one trunk and codebook: its grid code by code (raster), and by the scales of
           `recipe=nextflow`, of `recipe=nextflow-passes` (each in four passes), and of the paper. 8x8 places are 64
           pixels of the first, 16x16 of the second. Target: at most a fifth of the time.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import numpy as np
import torch

from benchmarks.measure import in_turn, machine, row
from models.any_to_any import AnyToAny
from models.attention import DocumentAttention
from models.flops import TrunkShape
from models.generate.choosing import Chance, Sampling, last
from models.generate.codes import code_rows
from models.generate.context import Context
from models.generate.scales import scale_steps
from models.layout import Format, Layout, document, opened
from models.raster import Marks
from models.recipe import Parts
from models.tokenizers.scales import NEXTFLOW, Sides, grids_of, num_places, passes_of
from models.tokenizers.text import ByteTokenizer
from models.trunk import TrunkConfig
from models.vocabulary import Vocabulary

GREEDY, TEXT, WORDS = Sampling(temperature=0), ByteTokenizer(), b"a red circle left of a blue square".decode()
SCHEDULES = {"nextflow": (1, 2, 3, 4, 6, 8), "nextflow-passes": (1, 2, 4, 8), "the paper": NEXTFLOW}
"""Of the tokenizers of these recipes; the finest grid is added (`grids_of`)."""
PLAIN = Marks(rows="none", frames=False, size=False)


def model_of(vision: str, layers: int, width: int, codes: int, interleave: int = 1) -> AnyToAny:
    """The same trunk for all kinds of pictures."""
    layout = Layout(vision=vision, marks=PLAIN, interleave=interleave)
    form = Format(layout=layout, vocabulary=Vocabulary.compact(256, codes))
    shape = TrunkShape(layers=layers, width=width, heads=width // 64, kv_heads=max(1, width // 128), ffn=3 * width)
    config = TrunkConfig(shape=shape, vocabulary_size=form.vocabulary.size)
    return AnyToAny(config, Parts(scale_embeddings=vision == "scales"), form).initialise(0).eval()


@torch.no_grad()
def cached(model: AnyToAny, tokens: int) -> float:
    """Seconds for so many tokens of text, one after the other."""
    started = time.perf_counter()
    context = Context(model, [document([TEXT.encode(WORDS)], model.form, TEXT, ended=False)], GREEDY, Chance([0]))
    for _ in range(tokens):
        context.show(model.logits(context.last_RD).argmax(-1))
    return time.perf_counter() - started


@torch.no_grad()
def uncached(model: AnyToAny, tokens: int, probes: int) -> float:
    """Seconds for the same with a pass over everything for each token."""
    first = 1 + len(TEXT.encode(WORDS))
    lengths = np.linspace(first, first + tokens - 1, probes).round().astype(int)
    seconds: list[float] = []
    for length in lengths.tolist():
        ids = torch.zeros(1, length, dtype=torch.long)
        started = time.perf_counter()
        hidden = model.trunk(model.embed(ids), torch.arange(length)[None], DocumentAttention([length]))
        model.logits(hidden[:, -1]).argmax(-1)
        seconds.append(time.perf_counter() - started)
    return float(np.trapezoid(seconds, lengths)) + seconds[-1]


def raster(model: AnyToAny, side: int) -> None:
    """One picture code by code."""
    prompt = opened([TEXT.encode(WORDS)], f"{side}*{side}", model.form, TEXT)
    last(code_rows(model, [prompt], (1, side, side), Sampling(), Chance([0])))


def scales(model: AnyToAny, grids: tuple[Sides, ...]) -> None:
    """One picture scale by scale."""
    prompt = opened([TEXT.encode(WORDS)], "{}*{}".format(*grids[-1]), model.form, TEXT)
    last(scale_steps(model, [prompt], grids, Sampling(), Chance([0])))


def measure(
    layers: int, width: int, codes: int, tokens: int, probes: int, sides: list[int], runs: int
) -> dict[str, float]:
    """Ratios by name, each printed with its medians."""
    of_codes, of_scales = (model_of(vision, layers, width, codes) for vision in ("codes", "scales"))
    of_passes = model_of("scales", layers, width, codes, interleave=2)
    of_schedule = {name: of_passes if name == "nextflow-passes" else of_scales for name in SCHEDULES}
    ratios: dict[str, float] = {}
    figures = in_turn(
        {"cached": lambda _: cached(of_codes, tokens), "uncached": lambda _: uncached(of_codes, tokens, probes)}, runs
    )
    print(row(f"{tokens} tokens, cached", figures["cached"], "s"))
    print(row(f"{tokens} tokens, uncached", figures["uncached"], "s", figures["cached"]))
    ratios["cached"] = median(figures["uncached"]) / median(figures["cached"])
    print(f"target {'met' if ratios['cached'] >= 5 else 'MISSED'}: {ratios['cached']:.1f} times as fast (at least 5)")
    for side in sides:
        grids = {name: grids_of(schedule, side, side) for name, schedule in SCHEDULES.items()}
        drawings = {name: lambda _, m=of_schedule[name], g=grids[name]: scales(m, g) for name in SCHEDULES}
        every = in_turn({"raster": lambda _, n=side: raster(of_codes, n), **drawings}, runs)
        print(row(f"{side}x{side}, {side * side} codes in turn", every["raster"], "s"))
        for name, model in of_schedule.items():
            num_passes = len(passes_of(grids[name], model.form.layout.interleave))
            what = f"{num_passes} passes, {num_places(grids[name])} codes ({name})"
            print(row(f"{side}x{side}, {what}", every[name], "s", every["raster"]))
            share = ratios[f"{name} {side}"] = median(every[name]) / median(every["raster"])
            print(f"target {'met' if share <= 0.2 else 'MISSED'}: 1/{1 / share:.1f} of raster's time (at most 1/5)")
    return ratios


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"runs": 5, "layers": 8, "width": 256, "codes": 4096, "tokens": 1024, "probes": 9}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--sides", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    print(
        machine("torch"), f"{asked.threads} threads; {asked.layers} layers of width {asked.width}, {asked.codes} codes"
    )
    measure(asked.layers, asked.width, asked.codes, asked.tokens, asked.probes, asked.sides, asked.runs)


if __name__ == "__main__":
    main()
