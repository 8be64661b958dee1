"""Whether a training hangs, and which ranks are at fault: judged by the driver from the ranks' pulses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from stages.workers.pulse import PULSE_S, Beat, Heard

START_S = 1800.0
"""How long nothing may move before the first step (models are built, kernels compiled), and while ranks save."""
HANG_S = 300.0
"""How long at least a step may take from then on."""
_STEPS = 20
"""Steps of median length that one step may take at least."""
SILENT_S = 5 * PULSE_S
"""A rank that was not heard for so long is not working."""
_NAMING_S = 10.0
_NAMED = 3

Naming = Callable[[Sequence[int]], str]
"""Words for rows at these positions of what is trained on."""


class Watch:
    """Follows the beats of all ranks. `hang_s`: how long nothing may move, where somebody has set it."""

    def __init__(self, hang_s: float | None, named: Naming | None) -> None:
        self._hang_s, self._named = hang_s, named
        self._seen: object = None
        self._moved_at = time.monotonic()

    def look(self, ranks: Sequence[Heard]) -> str | None:
        """One sentence where nothing has moved for too long, else None. Having said it, it waits as long again."""
        now, seen = time.monotonic(), [(h.beat.rank, h.beat.pid, h.beat.step, h.beat.what) for h in ranks]
        if seen != self._seen:
            self._seen, self._moved_at = seen, now
        still_s = now - self._moved_at
        if still_s < self._limit(ranks):
            return None
        self._moved_at = now
        if all(h.ago_s > SILENT_S for h in ranks):
            return f"no training worker has been heard for {still_s:.0f} s: `ray status` shows whether the cluster has room for them"  # fmt: skip  # noqa: E501
        return f"no step has moved for {still_s:.0f} s: {self._blamed(ranks)}"

    def _limit(self, ranks: Sequence[Heard]) -> float:
        beats = [h.beat for h in ranks if h.ago_s <= SILENT_S]
        if not any(beat.num_steps for beat in beats):
            return max(START_S, self._hang_s or 0.0)
        if self._hang_s is not None:
            return self._hang_s
        least = START_S if any(beat.what == "saving" for beat in beats) else HANG_S
        return max(least, _STEPS * max(beat.step_s for beat in beats))

    def _blamed(self, ranks: Sequence[Heard]) -> str:
        guilty = culprits(ranks)
        if len(guilty) > 1 and all(_waits_for_others(h.beat) for h in guilty):
            of = f"ranks {', '.join(str(h.beat.rank) for h in guilty)}"
            return f"{of} wait for each other in step {guilty[0].beat.step}, the network between them is at fault"
        more = f" and {len(guilty) - _NAMED} more ranks" if len(guilty) > _NAMED else ""
        return "; ".join(self._one(h) for h in guilty[:_NAMED]) + more

    def _one(self, heard: Heard) -> str:
        beat = heard.beat
        where = f"rank {beat.rank} ({beat.host}, process {beat.pid})"
        if heard.ago_s > SILENT_S:
            return f"{where} is silent for {heard.ago_s:.0f} s, stopped or stuck in native code, last {_doing(beat)}{self._reads(beat)}"  # fmt: skip  # noqa: E501
        return f"{where} is {_doing(beat)} for {beat.since_s + heard.ago_s:.0f} s{self._reads(beat)}"

    def _reads(self, beat: Beat) -> str:
        """What it reads, in words; as row numbers where reading the words takes too long, as it may from a store that
        hangs."""
        if beat.what != "loading" or not beat.rows or self._named is None:
            return ""
        found: list[str] = []
        named = self._named
        thread = threading.Thread(target=lambda: found.append(named(beat.rows)), name="plait-naming", daemon=True)
        thread.start()
        thread.join(_NAMING_S)
        return f", {found[0]}" if found else f", rows {', '.join(map(str, beat.rows))} of the snapshot"


def culprits(ranks: Sequence[Heard]) -> list[Heard]:
    """The ranks that do not wait for others: the silent ones; else, of those at the lowest step, the ones that load,
    save or start; else all at the lowest step."""
    if silent := [h for h in ranks if h.ago_s > SILENT_S]:
        return silent
    lowest = min(h.beat.step for h in ranks)
    last = [h for h in ranks if h.beat.step == lowest]
    return [h for h in last if not _waits_for_others(h.beat)] or last


def _waits_for_others(beat: Beat) -> bool:
    return beat.what in ("computing", "exchanging")


def _doing(beat: Beat) -> str:
    return "starting" if beat.what == "starting" else f"{beat.what} in step {beat.step}"
