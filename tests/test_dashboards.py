"""Each panel asks for metrics and labels that a run exports: against a real scrape, over two stores at once."""

from __future__ import annotations

import json
import re
import time
import urllib.request
import uuid
from collections import Counter, defaultdict
from typing import Any

import promql_parser
import pytest

from infra.s3_bucket import S3Bucket
from infra.telemetry import evaluating
from pipelines.cli import show
from stages.workers.gauges import TOLD
from stages.workers.pulse import Sink
from tests.conftest import REPO
from tests.faults.s3_proxy import S3Proxy

DASHBOARDS = sorted((REPO / "dashboards" / "grafana").glob("*.json"))
PATIENCE_S = 60
ONLY_WITH_A_GPU = {"ray_node_gpus_utilization", "ray_node_gram_used"}
TEXTS = {f"t{i}.txt": f"alpha{i} beta{i} boom{i} same drop{i} none{i}" for i in range(6)}


class Heard(S3Proxy):
    """Notes which names were asked for, and how."""

    def __init__(self, store: str) -> None:
        super().__init__(store, {})
        self.asked: Counter[str] = Counter()

    def note(self, method: str, path: str) -> None:
        """One request."""
        self.asked[f"{method} {path}"] += 1


def selectors(query: str) -> list[Any]:
    """The metrics that a query asks for, with their labels; PromQL is parsed as Prometheus does."""
    found: list[Any] = []

    def look(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        for name in ("expr", "lhs", "rhs", "param", "vs", "vector_selector"):
            if (below := getattr(node, name, None)) is not None:
                look(below)
        for below in getattr(node, "args", None) or []:
            look(below)

    look(promql_parser.parse(query))
    return found


def queries() -> list[tuple[str, str]]:
    """(panel, query) of all dashboards, with Grafana's variables filled in."""
    found = []
    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                query = target["expr"].replace("$__rate_interval", "1m").replace("$run", ".+")
                found.append((f"{path.stem}: {panel['title']}", query))
    return found


def scrape(ray: Any) -> dict[str, list[dict[str, str]]]:
    """The labels of every series at the first node's metrics agent, by metric."""
    (node,) = ray.nodes()
    with urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    found: dict[str, list[dict[str, str]]] = defaultdict(list)
    for line in lines:
        if match := re.fullmatch(r"(\w+)(?:\{(.*)\})? \S+", line):
            found[match[1]].append(dict(re.findall(r'(\w+)="([^"]*)"', match[2] or "")))
    return found


@pytest.fixture(scope="module")
def over_two_stores(ray, toy_marks, s3_endpoint, tmp_path_factory):
    """A toy run whose source lies in one store and whose root in another, and what could be scraped meanwhile."""
    from tests.conftest import Toy

    sink: Any = ray.remote(num_cpus=0)(Sink).remote("model", "run")
    prefix = uuid.uuid4().hex[:8]
    direct = S3Bucket(f"s3://plait/{prefix}/src", s3_endpoint)
    for name, text in TEXTS.items():
        direct.put(name, text.encode())
    seen: dict[str, list[dict[str, str]]] = defaultdict(list)
    with Heard(s3_endpoint) as raw, Heard(s3_endpoint) as store:
        toy = Toy(
            tmp_path_factory.mktemp("two"),
            toy_marks,
            ray,
            root=S3Bucket(f"s3://plait/{prefix}/root", store.endpoint),
            source=S3Bucket(f"s3://plait/{prefix}/src", raw.endpoint),
        )
        made = toy.run()
    wanted = {s.name for _, query in queries() for s in selectors(query)} - ONLY_WITH_A_GPU
    deadline = time.monotonic() + PATIENCE_S
    with evaluating({"training": (1, 10)}):
        while time.monotonic() < deadline and not wanted <= seen.keys():  # Ray tells the agent every ten seconds
            ray.get(sink.add.remote(10, dict.fromkeys([*TOLD, "loss/text", "tokens_per_s/text"], 1.0)))
            seen |= scrape(ray)
            time.sleep(1)
    ray.kill(sink)
    return made, seen, raw.asked, store.asked, prefix


@pytest.mark.parametrize("panel", sorted({panel for panel, _ in queries()}))
@pytest.mark.slow
def test_what_a_panel_asks_for_is_exported(panel, over_two_stores):
    _, seen, *_ = over_two_stores
    for query in (query for title, query in queries() if title == panel):
        found = selectors(query)
        assert found, f"{query} asks for nothing"
        for selector in found:
            if selector.name in ONLY_WITH_A_GPU:
                continue
            assert selector.name in seen, f"{selector.name} is not exported"
            labels = {label for series in seen[selector.name] for label in series}
            asked = {matcher.name for matcher in selector.matchers.matchers}
            assert asked <= labels, (selector.name, asked, labels)
            for by in re.findall(r"(?:by|without)\s*\(([^)]*)\)", query):
                assert {label.strip() for label in by.split(",")} <= labels, (query, labels)


@pytest.mark.slow
def test_a_source_in_another_store_is_read_there_and_nothing_is_written_to_it(over_two_stores):
    made, _, raw, store, prefix = over_two_stores
    assert made["texts"]["rows_out"] == len(TEXTS) and made["lengths"]["quarantined"] == len(TEXTS)
    assert raw and {text.split()[0] for text in raw} <= {"GET", "HEAD"}
    assert all(f"{prefix}/root" not in text for text in raw) and all(f"{prefix}/src" not in text for text in store)


@pytest.mark.slow
def test_requests_are_counted_by_stage_and_kind(over_two_stores):
    made, _, raw, store, _ = over_two_stores
    listed = sum(num for text, num in raw.items() if "list-type" in text)
    assert made["files"]["requests"]["GET"] >= len(TEXTS) and listed > 0
    for name in ("files", "texts", "words", "lengths"):
        asked = made[name]["requests"]
        assert asked["PUT"] > 0 and asked["bytes_sent"] > 0 and asked["bytes_received"] > 0, (name, asked)
    counted = sum(num for stage in made.values() for kind, num in stage["requests"].items() if kind.isupper())
    sent = sum(raw.values()) + sum(store.values())
    assert 0.3 * sent < counted < 1.2 * sent, (counted, sent)  # Lance's manifests and the planner's are in no stage


def test_requests_are_shown_where_there_are_any():
    from io import StringIO

    from rich.console import Console

    stages: list[dict] = [{"name": "a", "requests": {"PUT": 1200, "bytes_sent": 5_000_000}}, {"name": "b"}, {"name": "c", "requests": {"GET": 3}}]  # fmt: skip  # noqa: E501
    said = StringIO()
    show.requests(Console(file=said, width=100), stages)
    lines = [line.split() for line in said.getvalue().splitlines()[3:]]
    assert lines == [
        ["a", "1,200", "0", "0", "0", "0", "5.0", "0.0"],
        ["c", "0", "3", "0", "0", "0", "0.0", "0.0"],
        ["all", "1,200", "3", "0", "0", "0", "5.0", "0.0"],
    ]
    show.requests(Console(file=said, width=100), [{"name": "b"}])
