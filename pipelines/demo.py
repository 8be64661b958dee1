"""The main pipeline: raw files to an evaluated checkpoint."""

from __future__ import annotations

from infra.types import UserError
from pipelines.config import Config
from pipelines.graph import Graph
from stages.caption.caption import Captions
from stages.caption.interleaved import Interleaved
from stages.clip import Clips
from stages.evaluate.evaluate import Evals
from stages.extract import Indices, InterleavedIndices
from stages.filter.score import Scores
from stages.ingest import Files, Images, Texts, Videos
from stages.pack import MixedPacks, Packs
from stages.text_tokenizer import TextTokenizer
from stages.tokenizer.tokenizer import Tokenizer
from stages.train.train import Model


def graph(config: Config) -> Graph:
    """One line a stage; the select decides what captions, tokenizer, indices and evals see of the clips.

    Documents with several pictures are made where `packs.mixture` gives them a share.
    """
    _check_phases(config)
    mixed = config.settings.get(Packs.writes, {}).get("mixture", {}).get("mixed", 0)
    interleaved = (config.node(Interleaved, selected=True), config.node(InterleavedIndices)) if mixed else ()
    nodes = (
        config.node(Files),
        config.node(Videos),
        config.node(Images),
        config.node(Texts),
        config.node(Clips),
        config.node(Scores),
        config.node(Captions, selected=True),
        config.node(Tokenizer, selected=True),
        config.node(Indices, selected=True),
        config.node(TextTokenizer),
        *interleaved,
        config.node(MixedPacks if mixed else Packs),
        config.node(Model),
        config.node(Evals, selected=True),
    )
    return Graph(config.pipeline, nodes)


def _check_phases(config: Config) -> None:
    """Refuse steps for phases that the packs will not have, before the days it takes to make these."""
    packs, model = (list(config.settings.get(one.writes, {}).get("phases", {})) for one in (Packs, Model))
    if [name for name in packs or ["all"] if name in model] != model:
        raise UserError(
            f"model.phases has {', '.join(model)}, packs.phases has {', '.join(packs) or 'none'}: give each of the"
            " packs' phases its steps, in their order"
        )
