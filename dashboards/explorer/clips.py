"""Clips: pages by score, fate, words; the numbers to filter by; one clip with all that is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from dashboards.cards import thresholds_of
from dashboards.explorer.root import MAX_PAGE, NUMBERS, Root, has_parent, key_of, literal
from infra.ledger import snapshot_of
from infra.types import Snapshot, UserError

pc: Any = pyarrow.compute  # its functions are made at import: no type checker sees them

OF_CLIPS = ("num_frames", "fps", "width", "height")
"""Numbers of a clip itself that one may sort by."""
BINS = 60
REASONS_SHOWN = 60
KEPT = "kept"


@dataclass(frozen=True)
class Wish:
    """What a person asked to see."""

    sort: str = ""
    descending: bool = False
    offset: int = 0
    limit: int = 48
    fate: str = ""
    """"kept", "left out", or a reason."""
    kind: str = ""
    words: str = ""
    ranges: tuple[tuple[str, float, float], ...] = ()


class Clips:
    """The standing clips, with the scores that judged them and what the first stage behind a select made of them."""

    def __init__(self, root: Root) -> None:
        self.root = root
        standing = root.standing()
        if "clips" not in standing.dones:
            raise UserError(f"there are no clips under {root.bucket.uri} yet: `plait run --to clips` makes them")
        self.done = standing.done("clips")
        self.clips: Snapshot = snapshot_of(self.done)
        readers = [d for n in standing.order() if "clips" in (d := standing.dones[n])["inputs"]]
        self.readers = [d for d in readers if d["inputs"]["clips"]["role"] == "rows"]
        behind = [d for d in self.readers if any(i["role"] == "select" for i in d["inputs"].values())]
        self.judging = next((d for d in behind if d["dataset"] == "captions"), behind[0] if behind else None)
        self.judge = self._judge()
        told = standing.dones.get("captions")
        self.captions = snapshot_of(told) if told and "clips" in told["inputs"] else None

    def _judge(self) -> Snapshot | None:
        """The scores: those that the select looked at, else those that stand."""
        standing = self.root.standing()
        for given in (self.judging or {"inputs": {}})["inputs"].values():
            if given["role"] == "select" and (found := standing.of_input(given)):
                return snapshot_of(found)
        made = standing.dones.get("scores")
        return snapshot_of(made) if made else None

    # --- columns, by the place of a clip -------------------------------------------------------------------

    def _places(self, of: Snapshot) -> np.ndarray:
        """For each clip the first row of a dataset whose first parent it is; -1: none. 4 bytes a clip."""

        def find() -> np.ndarray:
            parents = self.root.open(of).to_table(columns=["parents"])["parents"].combine_chunks()
            first = pc.list_element(parents, 0) if len(parents) else pa.array([], pa.binary(16))
            at = pc.index_in(first, value_set=self.root.keys(self.clips)).fill_null(-1).to_numpy(zero_copy_only=False)
            found = np.full(self.clips.rows, -1, np.int32)
            rows = np.flatnonzero(at >= 0)[::-1]  # the first one is written last, and stays
            found[at[rows]] = rows
            return found

        name = ("places", self.clips, of)
        return self.root.cache.get(name, find, lambda a: a.nbytes)

    def names(self) -> list[str]:
        """Numbers that clips can be sorted and filtered by: scores first."""
        scores = [n for n in (self.root.number_names(self.judge) if self.judge else [])]
        return scores + [n for n in OF_CLIPS if n in self.root.columns(self.clips) and n not in scores]

    def values(self, name: str) -> np.ndarray:
        """A number by clip, nan where it is unknown."""
        if name not in self.names():
            raise UserError(f"{name!r} is no score of clips: they have {', '.join(self.names())}")
        judge = self.judge
        if judge is None or name not in self.root.columns(judge):
            return self.root.numbers(self.clips, name)

        def gather() -> np.ndarray:
            places, values = self._places(judge), self.root.numbers(judge, name)
            return np.where(places >= 0, values[places], np.nan) if len(values) else np.full(len(places), np.nan)

        return self.root.cache.get(("by clip", self.clips, judge, name), gather, lambda a: a.nbytes)

    def fates(self) -> tuple[np.ndarray, list[str]]:
        """For each clip the number of its reason, and the reasons; the first is "kept"."""
        judging = self.judging
        if judging is None:
            return np.zeros(self.clips.rows, np.int16), [KEPT]

        def read() -> tuple[np.ndarray, list[str]]:
            left = self.root.rest(judging)
            said = pc.binary_join_element_wise(left["state"], pc.fill_null(left["reason"], ""), ": ").combine_chunks()
            coded = said.dictionary_encode()
            at = pc.index_in(left["unit"].combine_chunks(), value_set=self.root.keys(self.clips))
            known = pc.is_valid(at).to_numpy(zero_copy_only=False)
            found = np.zeros(self.clips.rows, np.int16)
            found[np.asarray(at.drop_null())] = np.asarray(coded.indices)[known].astype(np.int16) + 1
            return found, [KEPT, *(r.removesuffix(": ") for r in coded.dictionary.to_pylist())]

        name = ("fates", self.clips, judging["key"], judging["rest"])
        return self.root.cache.get(name, read, lambda pair: pair[0].nbytes)

    def _kinds(self) -> np.ndarray:
        def read() -> np.ndarray:
            column = self.root.open(self.clips).to_table(columns=["source_kind"])["source_kind"]
            return pc.equal(column, "video").to_numpy()

        return self.root.cache.get(("kinds", self.clips), read, lambda a: a.nbytes)

    def _saying(self, words: str) -> np.ndarray:
        """Which clips have a caption with all of these words, in any case."""
        if self.captions is None:
            raise UserError("there are no captions yet: `plait run --to captions` makes them")
        captions = self.captions
        where = " and ".join(f"contains(lower(text), {literal(word)})" for word in words.lower().split())

        def find() -> np.ndarray:
            parents = self.root.open(captions).to_table(columns=["parents"], filter=where)["parents"].combine_chunks()
            found = np.zeros(self.clips.rows, bool)
            at = pc.index_in(pc.list_flatten(parents), value_set=self.root.keys(self.clips))
            found[np.asarray(at.drop_null())] = True
            return found

        return self.root.cache.get(("words", self.clips, captions, where), find, lambda a: a.nbytes)

    # --- pages ---------------------------------------------------------------------------------------------

    def _order(self, name: str, descending: bool) -> np.ndarray:
        """All places by a number, unknown ones last: sorted once, 4 bytes a clip."""

        def sort() -> np.ndarray:
            return in_order(self.values(name), descending).astype(np.int32)

        return self.root.cache.get(("order", self.clips, self.judge, name, descending), sort, lambda a: a.nbytes)

    def _passing(self, wish: Wish) -> np.ndarray | None:
        """Which clips pass; None: all."""
        masks: list[np.ndarray] = []
        if wish.fate:
            codes, reasons = self.fates()
            if wish.fate not in ("left out", *reasons):
                raise UserError(f"{wish.fate[:80]!r} is no fate of these clips: kept, left out, or a reason as listed")
            masks.append(codes > 0 if wish.fate == "left out" else codes == reasons.index(wish.fate))
        if wish.kind:
            masks.append(self._kinds() == (wish.kind == "video"))
        for name, low, high in wish.ranges:
            values = self.values(name)
            masks.append((values >= low) & (values <= high))
        if wish.words.strip():
            masks.append(self._saying(wish.words))
        return np.logical_and.reduce(masks) if masks else None

    def page(self, wish: Wish) -> dict[str, Any]:
        """A page of the clips that pass, with scores, fate and caption."""
        if not 0 < wish.limit <= MAX_PAGE or wish.offset < 0:
            raise UserError(f"a page has 1 to {MAX_PAGE} clips and begins at 0 or later")
        passing = self._passing(wish)
        places = self._order(wish.sort, wish.descending) if wish.sort else np.arange(self.clips.rows, dtype=np.int32)
        if passing is not None:
            places = places[passing[places]]
        shown = places[wish.offset : wish.offset + wish.limit]
        return {"total": len(places), "of": self.clips.rows, "offset": wish.offset, "rows": self._rows(shown)}

    def _rows(self, places: np.ndarray) -> list[dict[str, Any]]:
        columns = ("key", "label", "source_kind", "num_frames", "fps", "width", "height", "held_out")
        rows = self.root.at(self.clips, places.tolist(), columns)
        codes, reasons = self.fates()
        texts = self._first(self.captions, places, ["text"])
        scores = self._first(self.judge, places, self.root.number_names(self.judge) if self.judge else [])
        for row, place, text, score in zip(rows, places.tolist(), texts, scores, strict=True):
            row |= {
                "key": row["key"].hex(),
                "fate": reasons[codes[place]],
                "caption": text.get("text"),
                "scores": score,
            }
        return rows

    def _first(self, of: Snapshot | None, places: np.ndarray, columns: Sequence[str]) -> list[dict[str, Any]]:
        """For each place the first row of a dataset that was made of the clip there; {} where there is none."""
        if of is None or not columns:
            return [{} for _ in places]
        at = self._places(of)[places]
        found = iter(self.root.at(of, at[at >= 0].tolist(), columns))
        return [next(found) if one >= 0 else {} for one in at]

    # --- what there is -------------------------------------------------------------------------------------

    def about(self) -> dict[str, Any]:
        """Names, reasons and thresholds: what the filters offer."""
        codes, reasons = self.fates()
        counts = np.bincount(codes, minlength=len(reasons))
        listed = sorted(
            ((r, int(n)) for r, n in zip(reasons, counts, strict=True)), key=lambda p: (p[0] != KEPT, -p[1])
        )
        clauses = self.clauses()
        return {
            "total": self.clips.rows,
            "dataset": f"clips@{self.clips.version}",
            "judge": f"{self.judge.name}@{self.judge.version}" if self.judge else None,
            "judging": self.judging["dataset"] if self.judging else None,
            "scores": self.names(),
            "fates": [{"reason": r, "clips": n} for r, n in listed[:REASONS_SHOWN]],
            "num_videos": int(self._kinds().sum()),
            "clauses": clauses,
            "thresholds": thresholds_of(clauses),
        }

    def clauses(self) -> Mapping[str, str]:
        """The select, by name, as SQL over the scores."""
        if self.judging is None:
            return {}
        return (self.root.settings(self.judging).get("notes") or {}).get("select") or {}

    def histogram(self, name: str) -> dict[str, Any]:
        """How a number is spread, from its 0.5 % to its 99.5 % quantile, and which part of each bin was kept."""

        def count() -> dict[str, Any]:
            values = self.values(name)
            known = np.isfinite(values)
            if not known.any():
                return {"name": name, "bins": [], "kept": [], "nulls": int(self.clips.rows), "low": 0, "high": 0}
            low, high = np.quantile(values[known], [0.005, 0.995]).tolist()
            high = high if high > low else low + 1.0
            kept = known & (self.fates()[0] == 0)
            bins, part = (np.histogram(values[m].clip(low, high), BINS, (low, high))[0].tolist() for m in (known, kept))
            return {"name": name, "bins": bins, "kept": part, "nulls": int((~known).sum()), "low": low, "high": high}

        judging = (self.judging["key"], self.judging["rest"]) if self.judging else None
        name_of = ("histogram", self.clips, self.judge, judging, name)
        return self.root.cache.get(name_of, count, lambda _: 2000)

    def one(self, key: str) -> dict[str, Any]:
        """All that is known of a clip: row, scores, verdicts of the clauses, captions, what its readers made of it."""
        name = key_of(key)
        place = np.array([self.root.place(self.clips, name)])
        plain = [n for n in self.root.columns(self.clips) if n not in ("key", "parents")]
        of_it = has_parent([name])
        kinds = self.root.columns(self.judge) if self.judge else {}
        shown = ["key", *(n for n, t in kinds.items() if t in (*NUMBERS, "string", "bool") and n != "label")]
        scores = self._first(self.judge, place, shown)[0]
        verdicts = self._verdicts(scores.pop("key")) if scores else {}
        told = self.root.page(self.captions, ["key", "text", "captioner"], of_it, 50) if self.captions else []
        return {
            "key": key,
            "row": self.root.at(self.clips, place.tolist(), plain)[0],
            "scores": scores,
            "clauses": [{"name": n, "sql": c, "passes": verdicts.get(n)} for n, c in self.clauses().items()],
            "captions": [{**t, "key": t["key"].hex()} for t in told],
            "fates": [self._fate(done, name, of_it) for done in self.readers],
        }

    def _verdicts(self, key: bytes) -> dict[str, bool]:
        """What each clause of the select says of a row of scores."""
        clauses = self.clauses()
        if not clauses or self.judge is None:
            return {}
        wanted = {name: f"coalesce(({clause}), false)" for name, clause in clauses.items()}
        rows = self.root.open(self.judge).to_table(columns=wanted, filter=f"key = X'{key.hex()}'").to_pylist()
        return rows[0] if rows else {}

    def _fate(self, done: Mapping[str, Any], key: bytes, of_it: str) -> dict[str, Any]:
        """What a stage made of a clip: its rows, or why there are none."""
        left = self.root.rest(done)
        found = left.filter(pc.equal(left["unit"], pa.scalar(key, pa.binary(16)))).to_pylist()
        snapshot = snapshot_of(done)
        if found:
            state, reason, rows = found[0]["state"], found[0]["reason"], 0
        else:
            rows = self.root.count(snapshot, of_it)
            state, reason = (KEPT, None) if rows else ("read", "by a job, over the whole set")
        return {"stage": done["dataset"], "version": snapshot.version, "state": state, "reason": reason, "rows": rows}


def in_order(values: np.ndarray, descending: bool) -> np.ndarray:
    """Places by value, then by place; unknown values last."""
    return np.argsort(np.where(np.isfinite(values), -values if descending else values, np.inf), kind="stable")
