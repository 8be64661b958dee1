"""Configuration: every file composes, every setting of a stage is visible, every mistake is one sentence."""

import dataclasses
import re
import shlex

import pytest
import yaml

from infra.types import UserError
from pipelines.cli.compose import CONF, compose, setup

_LPIPS = "tokenizer.lpips_weights"
WEIGHTS = {
    "published": ["tokenizer.shape.place"],
    "vq-published": [_LPIPS],
    "emu3-published": [_LPIPS],
    "vae-published": [_LPIPS],
    "nextflow-published": [_LPIPS, "tokenizer.shape.teacher"],
}
_TEXT = ["text_tokenizer.file"]
WEIGHTS |= {path.stem: _TEXT for path in (CONF / "scale").glob("*.yaml") if not path.stem.startswith("tiny")}
"""Settings of a choice of conf/ that have no value until somebody gives one."""


@pytest.mark.parametrize("pipeline", ["demo", "curate"])
def test_every_setting_of_every_stage_is_written_in_conf(pipeline):
    made = setup([f"pipeline={pipeline}"])
    for node in made.graph:
        named = set(made.config.settings.get(node.name, {}))
        assert named == {f.name for f in dataclasses.fields(node.stage)}, node.name


@pytest.mark.parametrize("group", ["recipe", "scale", "tokenizer", "cluster", "tracking", "storage"])
def test_every_choice_composes(group):
    for path in (CONF / group).glob("*.yaml"):
        assert yaml.safe_load(path.read_text()) is not None
        place = ["storage.root=s3://bucket/prefix"] if path.stem == "s3" else []
        needed = [f"{name}={path}" for name in WEIGHTS.get(path.stem, [])]  # any file will do for a digest
        assert setup([f"{group}={path.stem}", *place, *needed]).graph.names


def test_sql_urls_and_paths_need_no_second_quoting():
    config = compose(["select.flow=flow is null or flow > 1", "source=/a b/c=d", "storage.endpoint=http://127.0.0.1:9"])
    assert config.select["flow"] == "flow is null or flow > 1"
    assert config.source == "/a b/c=d" and config.storage.endpoint == "http://127.0.0.1:9"
    assert compose(["select.mine=short_side > 5"]).select["mine"] == "short_side > 5"
    assert "flow" not in compose(["~select.flow"]).select


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("clips.treshold=3", "did you mean clips.threshold"),
        ("marks.resamples=9", "of another pipeline, add pipeline=evaluate"),
        ("clip.threshold=3", "did you mean clips.threshold|clip is no stage"),
        ("clips.threshold=many", "clips.threshold='many' is not allowed"),
        ("recipe=emu9", "recipe is one of"),
        ("nonsense", "write name=value"),
        ("cluster.stages.captoins.workers=4", "is no stage of demo: choose among"),
        ("pipeline=nowhere:graph", "cannot be loaded"),
        ("clips=3", "group of settings|is no setting"),
        ("cluster.workers=0.5", "workers"),
        ("cluster.workers=-1", "give 1 or more"),
        ("cluster.stages.clips.batch_rows=0", "above 0"),
        ("sample.num_videos=-1", "0 or more"),
        ("storage=s3", "add storage.root=s3"),
        ("tokenizer=published", "tokenizer.shape.place is missing: write tokenizer.shape.place=VALUE"),
        ("tokenizer.shape.kind=wavelet", "give one of vq, emu3, nextflow, vae, published"),
        ("tokenizer.shape.tower.width=wide", "tokenizer.shape.tower.width='wide' is not allowed"),
    ],
)
def test_a_wrong_override_is_one_sentence(override, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        setup([override])
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_weights_are_given_by_the_names_that_the_errors_tell(tmp_path):
    (tmp_path / "w").write_text("weights")
    given = [f"preferences.weights.mps={tmp_path}/w", "scores.scorers=[laion]", f"scores.weights.laion={tmp_path}/w"]
    made = setup(["pipeline=curate", *given])
    assert {"preferences", "preferred"} <= set(made.graph.names)
    assert made.graph.node("finetune").select.dataset == "preferred"
    assert made.graph.node("scores").stage.settings()["weights"].keys() == {"laion"}
    assert "preferences" not in setup(["pipeline=curate"]).graph.names


@pytest.mark.parametrize(
    ("scale", "billions"),
    [
        ("emu3-8b", 6.98), ("chameleon-7b", 6.48), ("chameleon-34b", 33.2), ("transfusion-7b", 6.48),
        ("simplear-0.5b", 0.36), ("simplear-1.5b", 1.31), ("nextflow-7b", 6.53), ("janus-pro-1b", 1.23),
        ("janus-pro-7b", 6.07),
    ],
)  # fmt: skip
def test_published_scales_have_the_blocks_of_the_published_models(scale, billions):
    """Parameters of all blocks without tables; 6.98 of Emu3 is model-recipes 1.1, 28 x 233,046,016 of NextFlow 2.2."""
    from models import flops

    trunk = flops.TrunkShape(**yaml.safe_load((CONF / "scale" / f"{scale}.yaml").read_text())["trunk"])
    assert trunk.layers * trunk.layer_parameters / 1e9 == pytest.approx(billions, abs=0.05)
    assert scale != "nextflow-7b" or trunk.layer_parameters == 233_046_016
    budget = yaml.safe_load((CONF / "scale" / f"{scale}.yaml").read_text())["packs"]
    assert budget["flops_per_pack"] > flops.causal_cost(trunk, 1, [budget["max_text_tokens"]], 0).train


def test_the_curricula_of_the_docs_compose(tmp_path):
    """The commands of docs/packing.md, with files in the places of weights."""
    text = (CONF.parent / "docs" / "packing.md").read_text().replace("\\\n", " ")
    file = tmp_path / "weights"
    file.touch()
    for word in ("QWEN/tokenizer.json", "SIGLIP", "LPIPS"):
        text = text.replace(word, str(file))
    commands = [shlex.split(part) for part in re.findall(r"\nplait (?:plan|run) (recipe[^`]*)`", text)]
    found = [setup(command).graph.node("model").stage for command in commands]
    assert [list(stage.phases) for stage in found] == [
        ["p256", "p512", "p1024", "late"],
        ["images", "videos"],
        ["p32", "p64"],
    ]
    assert [stage.steps for stage in found] == [100_000, 100_000, 200]


@pytest.mark.parametrize("phases", ["{b: 100, a: 100}", "{a: 100, b: 50, c: 50}"])
def test_phases_of_the_model_that_the_packs_will_not_have_are_refused_before_anything_runs(phases):
    packs = "packs.phases={a: {size: 32}, b: {size: 64}}"
    assert setup([packs, "model.phases={a: 100, b: 100}"]).graph.node("model").stage.phases == {"a": 100, "b": 100}
    with pytest.raises(UserError, match=r"packs.phases has a, b: give each of the packs' phases its steps"):
        setup([packs, f"model.phases={phases}"])


def test_a_dataset_has_one_meaning_whatever_pipelines_share_a_root():
    """`plait run --only captions` reads what stands: an evaluation must not have put something else there."""
    made = [node.stage for pipeline in ("demo", "curate", "evaluate") for node in setup([f"pipeline={pipeline}"]).graph]
    names = {stage.writes: type(stage) for stage in made}
    assert [stage.writes for stage in made if names[stage.writes] is not type(stage)] == []
