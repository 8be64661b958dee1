"""Next-token loss over a large vocabulary: memory and time of ours, plain PyTorch, and PyTorch's own chunked loss.

    python -m benchmarks.fused_loss [--runs 5] [--vocabulary 184622] [--widths 256 1024] [--tokens 2048 4096]
                                    [--bf16] [--auto]

One fresh process a contestant and round, contestants in turn. A process makes the inputs, calls once on a tiny problem
(libraries load), then forward + backward twice: the first call gives the memory, the second the time.

Memory is the peak of the process's resident set during the call, less the resident set before it (inputs and the
head's weights are in there) and less the two gradients that stay after it: what the loss itself needs on top. On CUDA
the allocator's peak takes the place of the resident set.

    ours            models.objectives.linear_cross_entropy: a weight for every token, z-loss off
    plain           torch.nn.functional.cross_entropy over full logits, a weight for every token
    torch chunked   torch.nn.functional.linear_cross_entropy in chunks of as many rows as ours: it has no weight for a
                    token, so the mean
    torch auto      the same with the chunk it chooses (2 rows here, on CPU slow): only with --auto
    liger           LigerFusedLinearCrossEntropyLoss (mean): only on CUDA and where it is installed; never run by us
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.measure import machine, row
from models import objectives

GIB = 2**30
CUDA = torch.cuda.is_available()


def ours(hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, weight_N: Tensor) -> Tensor:
    """Ours, under the sum of the weights."""
    return objectives.linear_cross_entropy(hidden_ND, head_VD, target_N, weight_N, weight_N.sum())[0]


def plain(hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, weight_N: Tensor) -> Tensor:
    """The reference: all logits at once, in fp32 as trainers do."""
    nll_N = functional.cross_entropy((hidden_ND @ head_VD.T).float(), target_N, reduction="none")
    return (nll_N * weight_N).sum() / weight_N.sum()


def torch_chunked(hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, weight_N: Tensor) -> Tensor:
    """PyTorch's own in chunks of ours: the plain mean, since it takes no weight for a token."""
    rows = max(1, objectives.CHUNK_BYTES // (4 * len(head_VD)))
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows, chunking_method=None)
    return functional.linear_cross_entropy(hidden_ND, head_VD, target_N, options=options)


def torch_auto(hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, weight_N: Tensor) -> Tensor:
    """PyTorch's own as it comes."""
    options = torch.nn.LinearCrossEntropyOptions()
    return functional.linear_cross_entropy(hidden_ND, head_VD, target_N, options=options)


def liger(hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, weight_N: Tensor) -> Tensor:
    """Liger's kernel: the plain mean."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss()(head_VD, hidden_ND, target_N)


CONTESTANTS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "plain": plain,
    "ours": ours,
    "torch chunked": torch_chunked,
    "torch auto": torch_auto,
}
if CUDA and importlib.util.find_spec("liger_kernel"):
    CONTESTANTS["liger"] = liger


def given(tokens: int, vocabulary: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states (N, D), head (V, D), targets and weights (N)."""
    torch.manual_seed(0)
    device = "cuda" if CUDA else "cpu"
    hidden_ND = torch.randn(tokens, width, device=device, dtype=dtype).requires_grad_()
    head_VD = torch.empty(vocabulary, width, device=device, dtype=dtype).normal_(std=0.02).requires_grad_()
    target_N = torch.randint(vocabulary, (tokens,), device=device)
    return hidden_ND, head_VD, target_N, torch.rand(tokens, device=device) + 0.5


def resident(what: str) -> int:
    """Bytes: "VmRSS" now, "VmHWM" at most so far."""
    if CUDA:
        return torch.cuda.memory_allocated() if what == "VmRSS" else torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def call(loss: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> float:
    """Forward and backward; seconds."""
    started = time.perf_counter()
    loss(*inputs).backward()
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def worker(name: str, tokens: int, vocabulary: int, width: int, dtype: torch.dtype) -> dict[str, float]:
    """One contestant in this fresh process: bytes on top, seconds."""
    loss = CONTESTANTS[name]
    call(loss, given(8, 64, width, dtype))
    inputs = given(tokens, vocabulary, width, dtype)
    gc.collect()
    before = resident("VmRSS")
    kept = sum(x.nbytes for x in inputs[:2])
    call(loss, inputs)
    peak = resident("VmHWM") - before - kept
    inputs[0].grad = inputs[1].grad = None
    return {"bytes": peak, "seconds": call(loss, inputs)}


def compare(names: Sequence[str], tokens: int, vocabulary: int, width: int, runs: int, bf16: bool) -> None:
    """All contestants in turn, `runs` rounds, printed."""
    print(f"\n{tokens} tokens, width {width}, vocabulary {vocabulary}, {'bf16' if bf16 else 'fp32'}:", flush=True)
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(runs):
        for name, found in figures.items():
            own = [name, str(tokens), str(vocabulary), str(width), "bfloat16" if bf16 else "float32"]
            command = [sys.executable, "-m", "benchmarks.fused_loss", "--worker", *own]
            found.append(json.loads(subprocess.check_output(command, text=True)))
    seconds = {name: [one["seconds"] for one in found] for name, found in figures.items()}
    peaks = {name: [one["bytes"] / GIB for one in found] for name, found in figures.items()}
    for name in names:
        print(row(name, seconds[name], "s", seconds["plain"]))
        print(row("", peaks[name], "GiB", peaks["plain"]))
    less = median(peaks["plain"]) / median(peaks["ours"])
    slower = median(seconds["ours"]) / median(seconds["plain"])
    met = "met" if less >= 8 and slower <= 1.3 else "MISSED"
    print(f"target {met}: ours at 1/{less:.1f} of plain's memory (at most 1/8), {slower:.2f}x its time (at most 1.3)")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=184_622, help="Emu3's")
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--auto", action="store_true")
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        name, tokens, vocabulary, width, dtype = asked.worker
        print(json.dumps(worker(name, int(tokens), int(vocabulary), int(width), getattr(torch, dtype))))
        return
    print(machine("torch"), torch.cuda.get_device_name() if CUDA else "CPU", f"{torch.get_num_threads()} threads")
    print(f"chunk of logits: {objectives.CHUNK_BYTES / 2**20:.0f} MiB")
    names = [name for name in CONTESTANTS if asked.auto or name != "torch auto"]
    for width in asked.widths:
        for tokens in asked.tokens:
            compare(names, tokens, asked.vocabulary, width, asked.runs, asked.bf16)


if __name__ == "__main__":
    main()
