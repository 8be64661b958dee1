"""Curation alone, as Emu3 and NextFlow describe it: raw files to clips, captions, documents, edits and clean texts."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.config import Config
from pipelines.graph import Graph, Node, Select
from stages.base import Stage
from stages.caption.caption import Captions, Readings
from stages.caption.edits import Edits
from stages.caption.interleaved import Interleaved
from stages.chosen import FineTune
from stages.clip import Clips
from stages.filter.distinct import Distinct
from stages.filter.preferences import Preferences, Preferred
from stages.filter.score import Scores
from stages.ingest import Files, Images, Texts, Videos
from stages.notes import Notes, SourceCaptions
from stages.text import CleanTexts, DistinctTexts, TextScores

PURPOSES = ("document", "finetune", "text")
"""Clauses whose name begins with one of these (`document_text`) belong to that path; the others to the main one."""
KEPT_ONE = {"duplicate": "duplicate_of is null"}


def clauses(config: Config, purpose: str | None) -> Mapping[str, str]:
    """The select's clauses of one path (None: the main one)."""
    owner = {name: next((p for p in PURPOSES if name.startswith(f"{p}_")), None) for name in config.select}
    return {name: clause for name, clause in config.select.items() if owner[name] == purpose}


def graph(config: Config) -> Graph:
    """One line a stage. A select over `distinct` leaves one clip of each family; `edits` sees the copies too."""
    main, document = clauses(config, None), clauses(config, "document")
    finetune, text = clauses(config, "finetune"), clauses(config, "text")

    prefers = any((config.settings.get(Preferences.writes, {}).get("weights") or {}).values())
    preference = (config.node(Preferences), config.node(Preferred)) if prefers else ()

    def behind(stage: type[Stage], dataset: str, over: str, wanted: Mapping[str, str]) -> Node:
        node = config.node(stage)
        return Node(node.stage, Select(dataset, over, wanted), node.placement)

    nodes = (
        config.node(Files),
        config.node(Videos),
        config.node(Images),
        config.node(Texts),
        config.node(Notes),
        config.node(Clips),
        config.node(SourceCaptions),
        config.node(Scores),
        behind(Distinct, "scores", "clips", main),
        behind(Captions, "distinct", "clips", {**main, **KEPT_ONE}),
        *preference,
        behind(FineTune, "preferred" if prefers else "distinct", "clips", {**main, **KEPT_ONE, **finetune}),
        behind(Readings, "scores", "clips", document),
        behind(Interleaved, "distinct", "clips", {**main, **KEPT_ONE}),
        behind(Edits, "distinct", "clips", main),
        config.node(TextScores),
        behind(DistinctTexts, "text_scores", "texts", text),
        behind(CleanTexts, "distinct_texts", "texts", {**text, **KEPT_ONE}),
    )
    return Graph(config.pipeline, nodes)
