"""The explorer from outside, by its addresses, over a small root with everything in it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

import pytest

from benchmarks.planted import RUN_ID, keys_of
from dashboards.explorer.server import VIEWS
from infra.bucket import open_bucket
from infra.folder_bucket import LocalBucket
from tests.conftest import REPO
from tests.dashboards import small_root as small
from tests.dashboards.served import explorer

CLIP = [key.as_py().hex() for key in keys_of("clips", small.NUM_CLIPS)]
FILM = CLIP[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("explorer") / "root"
    os.environ["HOUSE_PASSWORD"] = small.SECRET
    small.go_on(small.plant(folder))
    yield folder
    del os.environ["HOUSE_PASSWORD"]


@pytest.fixture(scope="module")
def served(folder):
    with explorer(LocalBucket(folder), [f"root={folder}"]) as found:
        yield found


def keys(page: dict) -> list[str]:
    return [row["key"] for row in page["rows"]]


# --- the graph -------------------------------------------------------------------------------------------------


def test_the_graph_says_what_became_of_every_unit_and_what_goes_on(served):
    state = served.json("/api/state")
    stages = {stage["name"]: stage for stage in state["stages"]}
    assert stages["captions"]["filtered"] == 3 and stages["captions"]["rows"] == 9
    assert stages["videos"]["quarantined"] == 3 and sum(stages["captions"]["reasons"].values()) == 3
    assert [run["run_id"] for run in state["going"]] == [small.GOING]
    assert stages["model"]["state"] == "running"
    assert {n: stages["model"]["progress"][n] for n in ("unit", "done", "total")} == {
        "unit": "steps",
        "done": 3,
        "total": 10,
    }
    assert stages["evals"]["state"] == "waiting" and stages["files"]["state"] == "made"


def test_edges_say_what_each_stage_read_and_how(served):
    stages = {stage["name"]: stage for stage in served.json("/api/state")["stages"]}
    assert [given["name"] for given in stages["scores"]["inputs"]] == ["clips"]
    assert [given["name"] for given in stages["marks"]["inputs"]] == ["verdicts"]
    assert {"name": "scores", "role": "select"} in stages["captions"]["inputs"]
    assert {"name": "scores", "role": "rows"} in stages["evals"]["inputs"]


def test_runs_and_what_they_said(served):
    found = {run["run_id"]: run for run in served.json("/api/runs")["rows"]}
    assert found[small.GOING]["state"] == "running" and found[RUN_ID]["state"] == "ok"
    assert served.json(f"/api/runs/{RUN_ID}")["lines"][0]["text"] == "the run begins"


# --- clips -----------------------------------------------------------------------------------------------------


def test_clips_by_a_score_with_unknown_ones_last(served):
    rising = served.json("/api/clips?sort=quality&limit=5")
    assert rising["total"] == small.NUM_CLIPS and keys(rising) == CLIP[:5]
    assert [row["scores"]["quality"] for row in rising["rows"]] == [0, 1, 2, 3, 4]
    assert keys(served.json("/api/clips?sort=quality&order=down&limit=3")) == CLIP[:-4:-1]
    for order in ("", "down"):
        assert keys(served.json(f"/api/clips?sort=flow&order={order}"))[0] == FILM


@pytest.mark.parametrize("sort", ["", "quality", "short_side", "flow"])
def test_pages_hold_every_clip_once(served, sort):
    pages = [keys(served.json(f"/api/clips?sort={sort}&offset={at}&limit=5")) for at in (0, 5, 10)]
    assert sorted(key for page in pages for key in page) == sorted(CLIP)


def test_clips_by_fate_range_and_kind(served):
    assert keys(served.json("/api/clips?fate=left+out")) == [CLIP[0], CLIP[1], CLIP[5]]
    assert keys(served.json(f"/api/clips?fate={quote('filtered: size')}")) == [CLIP[5]]
    assert served.json("/api/clips?fate=kept")["total"] == 9
    assert keys(served.json("/api/clips?range=quality:2:3.5&range=short_side::200")) == CLIP[2:4]
    assert keys(served.json("/api/clips?kind=video")) == [FILM]
    about = served.json("/api/clips/about")
    assert about["thresholds"]["quality"] == [2] and about["judge"] == "scores@1"
    assert {fate["reason"]: fate["clips"] for fate in about["fates"]}["filtered: quality"] == 2
    spread = served.json("/api/clips/histogram?score=quality")
    assert sum(spread["bins"]) == small.NUM_CLIPS and sum(spread["kept"]) == 9


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("Blue SQUARE", 6),
        ("it's", 1),
        ('"odd";', 1),
        ("100 %", 1),
        ("<script>", 1),
        ("') or true --", 0),
        ("\\", 0),
        ("%", 1),
    ],
)
def test_words_are_words_whatever_they_hold(served, words, number):
    assert served.json(f"/api/clips?words={quote(words)}")["total"] == number


NO_FILTERS = [
    "sort=key", "sort=quality;drop", "range=quality:a:b", "range=nothing:1:2", "fate=x'--", "limit=0", "limit=9999",
    "offset=-1", "offset=9e9",
]  # fmt: skip


@pytest.mark.parametrize("query", NO_FILTERS)
def test_what_is_no_filter_is_refused_with_a_sentence(served, query):
    found = served.get(f"/api/clips?{query}")
    assert found.status == 404 and len(found.json["error"]) > 20


def test_one_clip_with_all_that_is_known_of_it(served):
    kept, gone = served.json(f"/api/clips/{CLIP[2]}"), served.json(f"/api/clips/{CLIP[5]}")
    assert kept["captions"][0]["text"] == small.SCRIPT and kept["scores"]["quality"] == 2
    assert {c["name"]: c["passes"] for c in gone["clauses"]} == {"quality": True, "size": False}
    fate = {f["stage"]: (f["state"], f["reason"]) for f in gone["fates"]}
    assert fate["captions"] == ("filtered", "size") and fate["scores"] == ("kept", None)
    assert {f["stage"]: f["state"] for f in kept["fates"]}["captions"] == "kept"


# --- media -----------------------------------------------------------------------------------------------------


def test_media_come_whole_or_by_ranges(served):
    whole = served.get(f"/media/clips/{FILM}")
    size = len(whole.body)
    assert whole.status == 200 and whole.headers["content-type"] == "video/mp4"
    middle = served.get(f"/media/clips/{FILM}", range="bytes=10-19")
    assert middle.status == 206 and middle.body == whole.body[10:20]
    assert middle.headers["content-range"] == f"bytes 10-19/{size}"
    assert served.get(f"/media/clips/{FILM}", range="bytes=-7").body == whole.body[-7:]
    assert served.get(f"/media/clips/{FILM}", range=f"bytes={size - 3}-").body == whole.body[-3:]
    assert served.get(f"/media/clips/{FILM}", range=f"bytes={size}-").status == 416
    assert served.get(f"/media/clips/{CLIP[0]}").headers["content-type"] == "image/png"


def test_frames_are_jpeg_and_differ(served):
    found = {served.get(f"/frame/clips/{FILM}?number={i}&of=4&side=96").body for i in range(4)}
    assert len(found) == 4 and all(data.startswith(b"\xff\xd8") for data in found)
    assert served.get(f"/frame/clips/{FILM}?number=9&of=4").status == 404


def test_what_is_no_picture_is_a_download():
    from dashboards.explorer.media import kind_of

    assert kind_of(b"<svg onload=alert(1)>") == kind_of(b"<html>") == "application/octet-stream"


# --- quarantine, packs, tokenizers, training -------------------------------------------------------------------


def test_the_quarantine_by_fault_with_the_command_that_tries_again(served, folder):
    (fault,) = served.json("/api/quarantine")["faults"]
    assert (fault["stage"], fault["units"], fault["error_class"]) == ("videos", 3, "BadRow")
    command = shlex.split(fault["command"])
    assert command[:6] == ["plait", "run", "--only", "videos", "--retry-quarantined", f"root={folder}"]
    assert "tracking=none" in command and "--limit" not in command and small.SECRET not in fault["command"]
    units = served.json(f"/api/quarantine/videos?class=BadRow&trace={fault['trace_digest']}&limit=2")
    assert units["total"] == 3 and len(units["rows"]) == 2
    assert "cut short" in served.json(f"/api/quarantine/videos/{units['rows'][0]['unit']}")["error"]


def test_packs_in_an_order_with_strips_of_their_length(served):
    found = served.json("/api/packs?limit=4")
    assert [row["order"] for row in found["rows"]] == [0, 1, 2, 3] and found["total"] == 6
    for row in found["rows"]:
        assert sum(piece[0] for piece in row["pieces"]) == row["num_tokens"]
    assert found["rows"][1]["pieces"] == [[20, "text", 0, ""], [16, "codes", 0, "4 x 4"], [10, "text", 1, ""]]
    assert served.json("/api/packs?sort=flops&order=down")["rows"][0]["flops"] == 3e9
    one = served.json(f"/api/packs/{found['rows'][0]['key']}")
    assert one["num_members"] == 2 and {m["dataset"] for m in one["members"]} == {"captions"}


def test_tokenizers_with_their_pictures(served):
    (one,) = served.json("/api/tokenizers")["tokenizers"]
    assert one["rows"][0]["psnr"] == 27.5
    address = f"/picture/tokenizer/{one['key']}"
    assert served.get(f"{address}/{one['pictures'][0]}").body == small.png(9)
    for name in ("key.json", "picture.1.other.png", "..%2f..%2fpicture.1.reconstructions.png"):
        assert served.get(f"{address}/{name}").status == 404


def test_curves_while_training_goes_on_and_after(served):
    found = {t["key"]: t for t in served.json("/api/trainings")["trainings"] if t["dataset"] == "model"}
    assert {t["state"] for t in found.values()} == {"going on", "made"}
    going = served.json(f"/api/trainings/model/{'ab' * 16}")
    assert going["curve"]["steps"] == [1, 2, 3] and going["curve"]["metrics"]["loss/text"][0] == 0.5
    assert going["made_of"][0]["name"] == "packs"
    (key,) = set(found) - {"ab" * 16}
    made = served.json(f"/api/trainings/model/{key}")
    assert [c["step"] for c in made["checkpoints"]] == [5, 10] and all(c["row"] for c in made["checkpoints"])
    assert {"packs", "tokenizer", "captions", "clips", "files"} <= {d["name"] for d in made["made_of"]}
    assert made["settings"]["learning_rate"] == 0.003 and made["run"]["run_id"] == RUN_ID
    assert next(d for d in made["made_of"] if d["name"] == "captions")["settings"] == {"num_frames": 8}


def test_a_long_curve_is_thinned_and_keeps_its_end():
    from dashboards.explorer.training import MAX_POINTS, _thinned

    found = _thinned([(i, {"loss": float(i)}, i) for i in range(10_000)])
    assert len(found["steps"]) <= MAX_POINTS + 1 and found["steps"][-1] == 9_999 and found["num_steps"] == 10_000


# --- evaluation, lineage, rows ---------------------------------------------------------------------------------


def test_scores_and_answers_with_their_verdicts(served):
    rows = served.json("/api/scores")["rows"]
    assert [(r["step"], r["value"], r["low"], r["champion"]) for r in rows] == [
        (5, 0.25, 0.1, False),
        (10, 0.5, 0.3, True),
    ]
    right = served.json("/api/answers?verdict=right")
    assert right["total"] == 2 and all(row["verdict"]["score"] == 1 for row in right["rows"])
    assert served.json("/api/answers?step=10&task=two")["total"] == 1
    assert served.json(f"/api/answers?suite={quote(chr(39) + ' or 1=1 --')}")["total"] == 0
    one = served.json(f"/api/answers/{right['rows'][0]['key']}")
    assert one["prompt"] == small.SCRIPT
    assert served.get(f"/frame/generations/{one['key']}").headers["content-type"] == "image/jpeg"


def test_the_lineage_of_a_row_both_ways(served):
    found = served.json(f"/api/lineage/{CLIP[2]}")
    up = {level["dataset"]: level for level in found["up"]["levels"]}
    down = {level["dataset"]: level for level in found["down"]["levels"]}
    assert up["files"]["rows"][0]["path"] == "stills/02.png" and set(up) == {"files", "images", "clips"}
    assert [row["label"] for row in down["packs"]["rows"]] == ["pack 0"]
    assert [row["step"] for row in down["model"]["rows"]] == [5, 10]
    starts, ends = {e[0] for e in found["down"]["edges"]}, {e[1] for e in found["down"]["edges"]}
    assert CLIP[2] in starts and down["captions"]["rows"][0]["key"] in starts & ends


@pytest.mark.parametrize("name", [small.ODD_NAME, CLIP[3][:10], "clips", "clips@1", "model", "films/a.mp4"])
def test_lineage_begins_at_any_name(served, name):
    found = served.json(f"/api/lineage/{quote(name, safe='')}")
    assert found["up"]["levels"] and found["down"]["levels"]


def test_a_checkpoint_is_made_of_snapshots(served):
    training = next(
        t for t in served.json("/api/trainings")["trainings"] if t["dataset"] == "model" and t["state"] == "made"
    )
    one = served.json(f"/api/trainings/model/{training['key']}")["checkpoints"][0]
    for name in (one["row"], one["manifest"], f"{training['key']}.1/step-000005"):
        up = {level["dataset"]: level for level in served.json(f"/api/lineage/{quote(name, safe='')}")["up"]["levels"]}
        assert up["packs"]["whole"] and up["files"]["whole"] and up["files"]["rows"] == []


def test_rows_of_any_dataset(served):
    found = served.json("/api/rows/captions?limit=4&offset=2")
    assert found["total"] == 9 and len(found["rows"]) == 4 and "parents" in found["hidden"]
    assert served.json("/api/rows/scores@1")["total"] == small.NUM_CLIPS
    assert served.json(f"/api/rows/captions?words={quote(chr(39))}")["total"] == 0
    assert served.json(f"/api/row/{CLIP[0]}")["columns"]["label"] == small.ODD_NAME


# --- what is refused -------------------------------------------------------------------------------------------


NOWHERE = [
    "/api/clips/zz", f"/api/clips/{'0' * 32}", f"/api/packs/{'0' * 32}", "/api/lineage/nothing", "/api/rows/nothing",
    "/api/runs/never", f"/media/clips/{'0' * 32}", f"/media/texts/{CLIP[0]}", f"/media/captions/{CLIP[0]}",
    f"/media/clips@99/{CLIP[0]}", "/api/quarantine/nothing", f"/api/quarantine/videos/{'9' * 32}", "/nothing.js",
    "/api/trainings/model/..", f"/api/trainings/..%2f..%2fetc/{'0' * 32}", f"/picture/..%2f..%2f/{'0' * 32}/passwd",
    "/..%2f..%2fserver.py", "/../server.py", "/%2e%2e/server.py", "/static/main.js",
]  # fmt: skip


@pytest.mark.parametrize("path", NOWHERE)
def test_what_is_not_there_is_one_sentence(served, path):
    found = served.get(path)
    assert found.status == 404 and "Traceback" not in found.json["error"] and len(found.json["error"]) > 20


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_another_name_for_this_machine_is_refused(served, host):
    assert served.get("/api/state", host=host).status == 421


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:9", "[::1]:9"])
def test_names_of_this_machine_are_let_in(served, host):
    assert served.get("/api/state", host=host).status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_only_reading_is_let_in(served, method):
    assert served.get("/api/state", method).status == 405


def test_every_answer_keeps_scripts_of_others_out(served):
    for path in ("/", "/main.js", "/api/state", f"/media/clips/{CLIP[0]}", "/nothing"):
        headers = served.get(path).headers
        assert (
            "script-src 'self'" in headers["content-security-policy"] and headers["x-content-type-options"] == "nosniff"
        )
        assert "access-control-allow-origin" not in headers


def everything(served) -> list[str]:
    """An address of every view."""
    pack = served.json("/api/packs")["rows"][0]["key"]
    answer = served.json("/api/answers")["rows"][0]["key"]
    training = served.json("/api/trainings")["trainings"][-1]
    names = {"run": RUN_ID, "stage": "videos", "unit": "0" * 32, "dataset": training["dataset"], "target:path": "clips"}
    keys = {"/api/packs/{key}": pack, "/api/answers/{key}": answer, "/api/clips/{key}": CLIP[0]}
    found = ["/", "/main.js", f"/media/clips/{FILM}", f"/frame/clips/{FILM}", "/api/clips?words=red&sort=flow"]
    for path in VIEWS:
        address = path.replace("{key}", keys.get(path, training["key"]))
        for name, value in names.items():
            address = address.replace(f"{{{name}}}", value)
        address = address.replace("/api/row/clips", f"/api/row/{CLIP[0]}")
        found.append(
            address + ("?score=flow" if "histogram" in path else "?class=BadRow" if path.endswith("{stage}") else "")
        )
    return found


def test_a_whole_tour_writes_nothing_and_tells_no_secret(served, folder):
    def listing():
        return {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*")}

    before = listing()
    for address in everything(served):
        found = served.get(address)
        if address != "/api/samples":  # this root has no evals
            assert found.status == 200, (address, found.body)
        assert small.SECRET.encode() not in found.body
    assert listing() == before


# --- bare roots, and the command -------------------------------------------------------------------------------


@pytest.mark.parametrize("exists", [True, False])
def test_a_bare_root_is_a_sentence_in_every_view(tmp_path, exists):
    folder = tmp_path / "bare"
    if exists:
        folder.mkdir()
    with explorer(LocalBucket(folder)) as served:
        state = served.json("/api/state")
        assert {s["state"] for s in state["stages"]} == {"not made"} and state["last"] is None
        for path in ("/api/clips", "/api/clips/about", "/api/packs", "/api/samples", "/api/answers", "/api/rows/clips", f"/api/lineage/{CLIP[0]}", f"/media/clips/{CLIP[0]}"):  # fmt: skip  # noqa: E501
            found = served.get(path)
            assert found.status == 404 and found.json["error"]
        for path in ("/api/runs", "/api/trainings", "/api/tokenizers", "/api/quarantine", "/api/scores"):
            assert served.get(path).status == 200
    assert folder.exists() == exists


def test_a_damaged_dataset_fails_its_own_views_alone(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "root")
    for file in (tmp_path / "root" / "datasets" / "captions.lance" / "data").iterdir():
        file.unlink()
    with explorer(LocalBucket(tmp_path / "root")) as served:
        found = served.get("/api/rows/captions")
        assert found.status == 503 and "could not be read" in found.json["error"]
        assert served.get("/api/state").status == served.get("/api/packs").status == 200


def test_what_a_run_publishes_is_seen_without_a_new_start(folder, tmp_path):
    with explorer(LocalBucket(tmp_path / "later")) as served:
        assert served.get("/api/clips").status == 404
        small.plant(tmp_path / "later")
        end = time.monotonic() + 20
        while served.get("/api/clips").status != 200:
            assert time.monotonic() < end
            time.sleep(0.2)
        assert served.json("/api/clips")["total"] == small.NUM_CLIPS


def test_a_root_on_s3_is_read_the_same(s3_endpoint, folder):
    bucket = open_bucket("s3://plait/explorer", s3_endpoint)
    small.plant(bucket)
    where = ["storage=s3", "storage.root=s3://plait/explorer"]
    with explorer(bucket, where) as served, explorer(LocalBucket(folder)) as local:
        for path in ("/api/clips?sort=quality&order=down", "/api/clips?words=red&fate=kept", f"/api/clips/{CLIP[2]}"):
            assert served.json(path) == local.json(path)
        assert served.get(f"/media/clips/{FILM}", range="bytes=10-19").body == small.film()[10:20]
        assert served.json(f"/api/lineage/{CLIP[2]}")["down"] == local.json(f"/api/lineage/{CLIP[2]}")["down"]
        command = served.json("/api/quarantine")["faults"][0]["command"]
        assert all(one in command for one in where) and " root=" not in command


def start(*arguments: str) -> tuple[subprocess.Popen, str]:
    """`plait ui` as a person starts it, and the line with its address."""
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    command = [sys.executable, "-m", "pipelines.cli.main", "ui", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    lines = []
    while not lines or (not lines[-1].startswith("http") and process.poll() is None):
        lines.append(process.stderr.readline())
    return process, "".join(lines)


def test_the_command_prints_where_to_look_and_warns_where_others_can(folder):
    import urllib.request

    process, said = start(f"root={folder}", "--port", "0", "--host", "0.0.0.0")
    try:
        assert said.startswith("warning: everybody who reaches 0.0.0.0 can read all of") and said.count("\n") == 2
        address = said.splitlines()[-1].split()[0].replace("0.0.0.0", "127.0.0.1")
        with urllib.request.urlopen(address + "api/state", timeout=30) as reply:
            assert json.loads(reply.read())["root"] == str(folder)
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_a_port_that_is_taken_is_a_sentence(folder, served):
    process, said = start(f"root={folder}", "--port", served.url.rpartition(":")[2])
    process.communicate(timeout=30)
    assert process.returncode == 2 and "give another --port" in said and "Traceback" not in said
