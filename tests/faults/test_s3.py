"""A store that misbehaves costs time: never a row, never a version too many, and never a traceback."""

import uuid

import pytest

from infra.s3_bucket import S3Bucket
from infra.types import PlaitError, UserError
from pipelines.standing import Standing
from tests.faults.s3_proxy import S3Proxy

TEXTS = {f"t{i}.txt": f"alpha{i} beta{i} same drop{i} none{i}" for i in range(5)}
RATES = {"500": 0.03, "503": 0.03, "unsent": 0.03, "unheard": 0.03, "cut": 0.03, "dribble": 0.05}


@pytest.fixture
def s3_toy(make_toy, s3_endpoint):
    """A toy whose root and source lie in the store, which it reaches through the given endpoint."""

    def make(endpoint, prefix=None, **settings):
        prefix = prefix or uuid.uuid4().hex[:8]
        toy = make_toy(
            root=S3Bucket(f"s3://plait/{prefix}/root", endpoint, **settings),
            source=S3Bucket(f"s3://plait/{prefix}/src", endpoint, **settings),
        )
        direct = S3Bucket(f"s3://plait/{prefix}/src", s3_endpoint)
        for name, text in TEXTS.items():
            direct.put(name, text.encode())
        return toy

    return make


@pytest.fixture
def over_a_folder(make_toy):
    """What the same texts give on a folder that nobody disturbs."""
    toy = make_toy()
    for name, text in TEXTS.items():
        toy.write(name, text)
    return outcome(toy.run())


def outcome(stages):
    """Digests and counts by stage."""
    names = ("rows_in", "rows_out", "empty", "filtered", "quarantined")
    return {n: (s["snapshot"]["digest"], *(s[c] for c in names)) for n, s in stages.items()}


def assert_one_version_per_key(root):
    standing = Standing(root)
    for name, dones in standing.all.items():
        assert len(dones) == 1 and standing.store.head(name) == 1, name


@pytest.mark.slow
def test_a_store_that_fails_resets_and_dribbles_gives_the_rows_of_a_folder(s3_toy, s3_endpoint, over_a_folder):
    with S3Proxy(s3_endpoint, RATES, seed=7) as proxy:
        toy = s3_toy(proxy.endpoint)
        made = toy.run()
    assert outcome(made) == over_a_folder
    assert all(s["state"] == "done" for s in made.values())
    assert_one_version_per_key(S3Bucket(toy.root.uri, s3_endpoint))
    assert all(proxy.injected[fault] > 0 for fault in RATES), proxy.injected
    assert all(proxy.injected[f"503 {who}"] + proxy.injected[f"unheard {who}"] > 0 for who in ("boto", "lance"))


@pytest.mark.slow
@pytest.mark.parametrize("num_requests", [100, 300])  # of about 430: in `texts`, and in `lengths`
def test_a_store_that_stays_down_ends_the_run_in_one_sentence_and_the_same_command_goes_on(
    num_requests, s3_toy, s3_endpoint, over_a_folder
):
    with S3Proxy(s3_endpoint, {}) as proxy:
        toy = s3_toy(proxy.endpoint, num_retries=2)
        proxy.down_after = num_requests
        with pytest.raises(PlaitError) as failed:
            toy.run()
        said = str(failed.value)
        assert not isinstance(failed.value, UserError) and "\n" not in said and len(said) < 400, said
        assert "run again" in said or "run the same command again" in said, said
        proxy.down_after = None
        assert outcome(toy.run()) == over_a_folder
    assert_one_version_per_key(S3Bucket(toy.root.uri, s3_endpoint))
