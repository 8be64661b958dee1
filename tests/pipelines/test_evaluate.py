"""`plait evaluate`: every checkpoint and question once, by whoever and however often; gates, and the champion."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from infra.checkpoints import CheckpointFolder
from infra.folder_bucket import LocalBucket
from infra.ledger import Ledger, snapshot_of
from infra.store import SnapshotReader, Store
from infra.tracking import Tracker
from infra.types import UserError
from models.any_to_any import AnyToAny, save_model
from models.flops import TrunkShape
from models.layout import Format, Layout
from models.recipe import Parts
from models.tokenizers.text import BYTES, ByteTokenizer
from models.trunk import TrunkConfig
from models.vocabulary import Vocabulary
from pipelines.ask import Ask
from pipelines.checkpoints import Checkpoints
from pipelines.cli.compose import setup
from pipelines.cli.cron import emitted, schedule_of
from pipelines.cli.evaluate import When, Wish, evaluate, found_in, listed_for
from pipelines.cli.world import cards, tales
from pipelines.evaluate import lags, listed, rows_of, with_listed
from pipelines.lineage import Lineage
from pipelines.plan import Planner
from pipelines.run import Runner, Services
from pipelines.standing import Standing
from pipelines.target import Finder
from stages.evaluate.checkpoints import Checkpoints as Listing
from stages.extract import Indices
from stages.pack import Packs
from stages.text_tokenizer import TextTokenizer
from stages.tokenizer.tokenizer import Tokenizer
from stages.train.train import Model
from tests.conftest import Quiet
from tests.pipelines.test_export import put, row
from tests.tokenizers import vq

SHAPE = TrunkShape(layers=1, width=32, heads=2, kv_heads=1, ffn=32)
SMALL = ("evaluation.options.composition.prompts_per_task=2", "marks.resamples=100", "tracking=none")
KEY = "k" * 32
ALL = Wish()


class Root:
    """A root with tokenizers and packs that are published, and a training that goes on."""

    def __init__(self, home: Path) -> None:
        self.bucket = LocalBucket(home / "data")
        self.home = home
        tokenizer, text = vq(), ByteTokenizer()
        for name in ("tokenizer", "text_tokenizer"):
            (home / name).mkdir()
        tokenizer.save(home / "tokenizer")
        (home / "text_tokenizer" / BYTES).touch()
        saved = [CheckpointFolder(self.bucket, f"checkpoints/{n}/k").save(0, home / n, {"size": 256}) for n in ("tokenizer", "text_tokenizer")]  # fmt: skip  # noqa: E501
        vision = put(self.bucket, Tokenizer, [row(saved[0], Tokenizer)], {})
        words = put(self.bucket, TextTokenizer, [row(saved[1], TextTokenizer, kind="bytes")], {})
        indices = put(self.bucket, Indices, [], {"tokenizer": vision})
        tree = {"recipe": {"settings": {"size": 16}}}
        Ledger(self.bucket).folder("indices", indices["key"]).put("key.json", {"tree": tree})
        packs = put(self.bucket, Packs, [], {"text_tokenizer": words, "indices": indices})
        sides = {"tokenizer": vision["snapshot"]["digest"]}
        settings = {"checkpoint_every": 10, "steps": 100}
        tree = {"inputs": {"packs": packs["snapshot"]["digest"]}, "recipe": {"settings": settings, "sides": sides}}
        folder = Ledger(self.bucket).folder("model", KEY)
        folder.put("key.json", {"tree": tree, "notes": {}})
        folder.put("claim.1", {"at": "2026-01-01T00:00:00+00:00"})
        digests = {"vision_digest": tokenizer.digest(), "text_digest": text.digest}
        self.form = Format(layout=Layout(vision="codes"), vocabulary=Vocabulary.compact(256, 24, **digests))

    def save(self, step: int) -> None:
        """The training puts a checkpoint, with weights of its own."""
        config = TrunkConfig(shape=SHAPE, vocabulary_size=self.form.vocabulary.size)
        folder = self.home / f"step-{step}"
        folder.mkdir()
        save_model(AnyToAny(config, Parts(), self.form).initialise(step), folder, step)
        CheckpointFolder(self.bucket, f"checkpoints/model/{KEY}.1").save(step, folder, {})

    def remove(self, step: int) -> None:
        """The training keeps the last few alone."""
        folder = CheckpointFolder(self.bucket, f"checkpoints/model/{KEY}.1")
        folder.drop(next(one for one in folder.all() if one.step == step))

    def evaluate(self, ray: Any, *overrides: str, wish: Wish = ALL, tracker: Any = None) -> dict[str, dict[str, Any]]:
        """One look in this process: entries by stage; none where nothing was left to do."""
        made = setup(["pipeline=evaluate", f"root={self.bucket.folder}", *SMALL, *overrides])
        graph = with_listed(made.graph, listed_for(made, found_in(made), wish))
        if graph is None:
            return {}
        planner = Planner(graph, made.root, None, Ask())
        services = Services(made.root, None, lambda: ray, lambda: tracker, cards, Quiet(), "again", tales)
        return {entry["name"]: entry for entry in Runner(planner, services, Ask(), {}).run().stages}

    def answers(self) -> dict[tuple[str, int], bytes]:
        """The pictures, by question and number."""
        reader = SnapshotReader(self.bucket, snapshot_of(Ledger(self.bucket).dones("generations")[-1]), None)
        rows = reader.take(range(len(reader)), ["question", "index", "media"]).to_pylist()
        return {(row["question"], row["index"]): row["media"] for row in rows}

    def scores(self) -> list[dict[str, Any]]:
        """Rows of `marks`."""
        columns = ("step", "score", "value", "low", "high", "num_judged", "num_wanted", "outcome", "champion")
        return rows_of(Store(self.bucket), "marks", columns)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)


def test_answers_are_seen_and_scores_are_read_in_mlflow(root: Root, ray: Any) -> None:
    tracker = Tracker(f"sqlite:///{root.home}/mlflow.db", str(root.home / "artifacts"), "plait")
    root.save(10)
    made = root.evaluate(ray, tracker=tracker)
    assert made["generations"]["rows_out"] > 0
    shown = {
        run.data.tags["plait.stage"]: {file.path for file in tracker.client.list_artifacts(run.info.run_id, "pictures")}
        for run in tracker.client.search_runs([tracker.experiment])
        if "plait.stage" in run.data.tags
    }
    assert "pictures/contact_sheet.png" in shown["generations"] and "pictures/scores.html" in shown["marks"]


def test_lineage_leads_from_what_was_scored_to_the_training_and_on_to_its_packs(root: Root) -> None:
    root.save(10)
    (found,) = Checkpoints(Store(root.bucket)).all()
    packs = Ledger(root.bucket).dones("packs")[-1]
    model = put(root.bucket, Model, [row(found.checkpoint, Model)], {"packs": packs})
    scored = put(root.bucket, Listing, [asdict(listed(found)) | {"training": model["key"]}], {})
    standing = Standing(root.bucket)
    picture = Lineage(standing).up(Finder(standing).find("checkpoints"))
    manifest, stage = f"checkpoint:{found.checkpoint.manifest}", f"stage:checkpoints/{scored['key'][:8]}"
    assert (manifest, stage) in picture.edges and (
        f"snapshot:model@{model['snapshot']['version']}",
        manifest,
    ) in picture.edges
    labels = {node["label"].partition(" ")[0] for node in picture.nodes.values()}
    assert {"packs@1", "tokenizer", "text_tokenizer"} <= labels


def test_how_far_scores_are_behind_is_known_of_each_training(root: Root) -> None:
    for step in (10, 20, 30):
        root.save(step)
    found = [listed(one) for one in Checkpoints(Store(root.bucket)).all()]
    assert lags(found, {(KEY, 10), ("another", 30)}) == {KEY: (2, 20)}
    assert lags(found, set()) == {KEY: (3, 30)} and lags(found, {(KEY, 10), (KEY, 20), (KEY, 30)}) == {KEY: (0, 0)}


def test_every_checkpoint_and_question_is_worked_on_once_while_a_training_puts_more(root: Root, ray: Any) -> None:
    assert root.evaluate(ray) == {}  # nothing to look at is nothing to do
    root.save(10)
    root.save(13)  # because it was asked to stop: none that is published
    first = root.evaluate(ray)
    asked = first["trials"]["rows_out"]
    assert first["checkpoints"]["rows_out"] == 1 and first["generations"]["computed"] == asked > 9
    again = root.evaluate(ray)
    assert {entry["state"] for entry in again.values()} == {"fresh"}
    root.save(20)
    second = root.evaluate(ray)
    assert second["generations"]["computed"] == second["verdicts"]["computed"] == asked
    assert second["generations"]["kept"] == asked
    root.remove(10)  # its scores stay
    root.save(30)
    third = root.evaluate(ray)
    assert third["generations"]["computed"] == asked and third["generations"]["quarantined"] == 0
    assert {row["step"] for row in root.scores()} == {10, 20, 30}
    assert all(row["num_judged"] == row["num_wanted"] == asked for row in root.scores())
    # more answers to each question add to those that are there
    more = root.evaluate(ray, "evaluation.suites.composition.samples=2", wish=Wish(budget=1))
    assert more["generations"]["kept"] == 3 * asked
    # step 10 is gone: its answers cannot be drawn, and that is said, row by row
    assert more["generations"]["computed"] == 3 * asked and more["generations"]["quarantined"] == asked


def test_a_checkpoint_that_is_gone_when_its_turn_comes_is_its_rows_fault(root: Root, ray: Any) -> None:
    root.save(10)
    root.save(20)
    made = setup(["pipeline=evaluate", f"root={root.bucket.folder}", *SMALL])
    found = listed_for(made, found_in(made), ALL)
    # of data that is known, so that losses are asked for too
    found = tuple(
        replace(one, data=json.dumps({name: {} for name in ("captions", "indices", "texts")})) for one in found
    )
    root.remove(10)
    graph = with_listed(made.graph, found[:1])
    assert graph is not None
    planner = Planner(graph, made.root, None, Ask(to="likelihoods"))
    services = Services(made.root, None, lambda: ray, lambda: None, lambda *_: {}, Quiet(), "again")
    entries = {entry["name"]: entry for entry in Runner(planner, services, Ask(), {}).run().stages}
    assert entries["likelihoods"]["quarantined"] == 1
    assert "damaged or gone" in next(iter(entries["likelihoods"]["reasons"]))


def test_a_page_in_a_folder_that_is_not_there_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make the folder"):
        evaluate([f"root={tmp_path}"], When(), ALL, None, str(tmp_path / "nowhere" / "scores.html"), False)


def test_the_newest_come_first_within_the_budget_and_a_name_means_one_checkpoint(root: Root) -> None:
    for step in (10, 20, 30):
        root.save(step)
    made = setup(["pipeline=evaluate", f"root={root.bucket.folder}", *SMALL])
    assert [one.step for one in listed_for(made, found_in(made), Wish(budget=2))] == [20, 30]
    assert [one.step for one in listed_for(made, found_in(made), Wish())] == [10, 20, 30]
    assert [one.step for one in listed_for(made, found_in(made), Wish(target=f"{KEY[:8]}/step-000020"))] == [20]
    found = Checkpoints(Store(root.bucket)).all()[0]
    assert [one.step for one in listed_for(made, found_in(made), Wish(target=found.checkpoint.manifest))] == [10]
    with pytest.raises(UserError, match=r"is no checkpoint of .* give a name such as kkkkkkkk/step-000030"):
        listed_for(made, found_in(made), Wish(target="step-000099"))


def test_answers_do_not_depend_on_what_is_drawn_beside_them_and_checkpoints_draw_from_the_same_numbers(
    root: Root, ray: Any
) -> None:
    root.save(10)
    root.evaluate(ray, "cluster.stages.generations={batch_rows: 3}")
    some = root.answers()
    left_out = shutil.ignore_patterns("generations*", "verdicts*", "marks*")
    shutil.copytree(root.home / "data", root.home / "again", ignore=left_out)
    other = LocalBucket(root.home / "again")
    assert all(isinstance(one, bytes) for one in some.values()) and len(set(some.values())) > 5
    assert not (other.folder / "ledger" / "generations").exists()
    root.bucket = other
    root.evaluate(ray, "cluster.stages.generations={batch_rows: 50}")
    same = root.answers()
    assert same == some


@pytest.mark.parametrize(
    ("every_s", "schedule"),
    [(600, "*/10 * * * *"), (3600, "0 */1 * * *"), (21600, "0 */6 * * *"), (86400, "0 0 * * *")],
)
def test_a_schedule_is_said_in_the_words_of_cron(every_s: float, schedule: str) -> None:
    assert schedule_of(every_s) == schedule


@pytest.mark.parametrize("every_s", [30, 90, 7 * 60, 5 * 3600, 2 * 86400])
def test_what_cron_cannot_say_is_refused(every_s: float) -> None:
    with pytest.raises(UserError, match="is no schedule of cron"):
        schedule_of(every_s)


def test_the_manifest_for_kubernetes_holds_the_command_and_forbids_overlap() -> None:
    import yaml

    text = emitted("k8s", 600, ["storage=s3", "storage.root=s3://b/p"], "here/plait:1", "head:6379")
    job = yaml.safe_load(text)
    assert job["spec"]["schedule"] == "*/10 * * * *" and job["spec"]["concurrencyPolicy"] == "Forbid"
    container = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    assert container["args"] == [
        "plait", "evaluate", "--once", "--address", "head:6379", "storage=s3", "storage.root=s3://b/p",
    ]  # fmt: skip
    assert json.dumps(job).count("secretRef") == 1  # by name, never by value
    assert emitted("crontab", 600, ["root=a b"], "", None) == "*/10 * * * * plait evaluate --once 'root=a b'\n"
