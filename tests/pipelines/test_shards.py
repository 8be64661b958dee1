"""How big a shard is where nobody says."""

import pytest

from pipelines.graph import Graph, Node
from pipelines.shards import default_rows
from stages.clip import Clips
from stages.filter.score import Scores
from stages.ingest import Files, Images, Texts, Videos
from tests.toy import Words

GRAPH = Graph("g", tuple(Node(s) for s in (Files(), Videos(), Images(), Texts(), Words(), Clips(), Scores())))


@pytest.mark.parametrize(
    ("num_units", "size"),
    [(10, 64), (12_800, 64), (65_536, 327), (1_000_000, 5000), (10_000_000, 8192), (10**9, 100_000)],
)
def test_a_stage_of_any_size_has_at_most_ten_thousand_shards(num_units, size):
    assert default_rows(Words(), GRAPH, num_units) == size
    assert -(-num_units // size) <= 10_001


@pytest.mark.parametrize("stage", [Videos(), Clips(), Scores()])
def test_a_shard_of_media_is_small_since_it_is_held_in_memory(stage):
    assert default_rows(stage, GRAPH, 10**9) == 64
