"""The main pipeline: raw files to an evaluated checkpoint."""

from __future__ import annotations

from pipelines.config import Config
from pipelines.graph import Graph
from stages.caption.caption import Captions
from stages.clip import Clips
from stages.evaluate.evaluate import Evals
from stages.extract import Indices
from stages.filter.score import Scores
from stages.ingest import Files, Images, Texts, Videos
from stages.pack import Packs
from stages.text_tokenizer import TextTokenizer
from stages.tokenizer.tokenizer import Tokenizer
from stages.train.train import Model


def graph(config: Config) -> Graph:
    """One line a stage; the select decides what captions, tokenizer, indices and evals see of the clips."""
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
        config.node(Packs),
        config.node(Model),
        config.node(Evals, selected=True),
    )
    return Graph(config.pipeline, nodes)
