"""What a training tells stands in Prometheus' form at the metrics agent of its node."""

from __future__ import annotations

import re
import time
import urllib.request
from typing import Any, ClassVar

import pytest

from stages.train.speed import Speed
from stages.workers.gauges import TOLD, described, name_of
from stages.workers.pulse import Sink

PATIENCE_S = 40


@pytest.mark.parametrize(
    ("metric", "name", "words"),
    [
        ("mfu", "plait_train_mfu", TOLD["mfu"]),
        ("loss/scale_03", "plait_train_loss_scale_03", "Weighted loss: scale_03."),
        ("step_s/predicted", "plait_train_step_s_predicted", TOLD["step_s/predicted"]),
        ("psnr (dB)", "plait_train_psnr__dB_", "psnr (dB)"),
    ],
)
def test_a_metric_has_a_name_that_prometheus_allows_and_a_description(metric: str, name: str, words: str) -> None:
    assert (name_of(metric), described(metric)) == (name, words)


def test_what_the_trainer_reports_of_its_speed_is_described() -> None:
    import torch

    speed = Speed(1e9, 1, False, torch.device("cpu"))
    speed.step([1e6], 10.0, 4.0, 6.0)
    unknown = [name for name in speed.report(0.0, 0.0) if described(name) == name]
    assert unknown == []


def scraped(ray: Any) -> dict[str, tuple[dict[str, str], float]]:
    """Our gauges at the first node's metrics agent: their tags and value, by name."""
    (node,) = ray.nodes()
    with urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    found = {}
    for line in lines:
        if match := re.fullmatch(r"ray_(plait_train_\w+)\{(.*)\} (\S+)", line):
            found[match[1]] = (dict(re.findall(r'(\w+)="([^"]*)"', match[2])), float(match[3]))
    return found


class FakeGauge:
    """Stands where Ray's does."""

    made: ClassVar[list[FakeGauge]] = []

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.name, self.keys, self.values, self.tags = name, tag_keys, [], {}
        self.made.append(self)

    def set_default_tags(self, tags: dict[str, str]) -> FakeGauge:
        self.tags = tags
        return self

    def set(self, value: float) -> None:
        self.values.append(value)


def test_a_gauge_is_declared_once_and_set_again_whenever_the_driver_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.util.metrics

    monkeypatch.setattr(FakeGauge, "made", [])
    monkeypatch.setattr(ray.util.metrics, "Gauge", FakeGauge)
    sink = Sink("model", "run")
    sink.drain()
    sink.add(10, {"loss": 2.0})
    sink.drain()
    sink.add(20, {"loss": 1.0})
    assert {gauge.name: gauge.values for gauge in FakeGauge.made} == {
        "plait_train_step": [10.0, 10.0, 20.0],
        "plait_train_loss": [2.0, 2.0, 1.0],
    }
    assert all(
        gauge.tags == {"stage": "model", "run": "run"} and gauge.keys == ("stage", "run") for gauge in FakeGauge.made
    )


@pytest.mark.slow
def test_what_a_sink_is_told_can_be_scraped(ray: Any) -> None:
    actor: Any = ray.remote(num_cpus=0)(Sink)
    sink = actor.remote("model", "20261121T030958-1")
    told = {"loss": 2.5, "loss/text": 2.0, "mfu": 0.25, "tokens_per_s/vision": 1e4}
    ray.get(sink.add.remote(10, {"loss": 9.0}))
    ray.get(sink.add.remote(20, told))
    wanted = {f"plait_train_{name.replace('/', '_')}": value for name, value in told.items()} | {"plait_train_step": 20}
    deadline, found = time.monotonic() + PATIENCE_S, {}  # Ray hands values to the agent every ten seconds
    while time.monotonic() < deadline and not wanted.keys() <= found.keys():
        time.sleep(0.5)
        found = scraped(ray)
    assert {name: value for name, (_, value) in found.items() if name in wanted} == wanted
    assert all((tags["stage"], tags["run"]) == ("model", "20261121T030958-1") for tags, _ in found.values())
    held, _, _ = ray.get(sink.drain.remote())
    assert held == [(10, {"loss": 9.0}), (20, told)]
    ray.kill(sink)
