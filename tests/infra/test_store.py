"""Lance as the engine uses it: canaries for each behaviour that the commit protocol stands on."""

import os
import shutil

import lance
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra import commits, compact
from infra.digests import digest_of
from infra.folder_bucket import LocalBucket
from infra.store import Store, check_clauses
from infra.types import RunError, UserError
from stages.base import blob

OWN = pa.schema([pa.field("x", pa.int64()), blob("media")])


def rows(start, stop):
    """Rows with key, one parent and a blob."""
    return [
        {"key": i.to_bytes(16, "big"), "parents": [i.to_bytes(16, "big")], "label": str(i), "x": i, "media": b"%d" % i}
        for i in range(start, stop)
    ]


@pytest.fixture
def store(tmp_path):
    return Store(LocalBucket(tmp_path))


def publish(store, stop=10, stamp="one"):
    """A full materialisation in two fragments."""
    staged = [*store.stage("d", rows(0, 5), OWN).fragments, *store.stage("d", rows(5, stop), OWN).fragments]
    return store.snapshot("d", commits.publish_full(store, "d", OWN, staged, stamp, store.head("d")))


def numbers(store, snapshot):
    return store.scan(snapshot, ["x"])["x"].to_pylist()


def test_a_commit_repeated_by_a_resumed_driver_is_found_and_adopted(store):
    staged = store.stage("d", rows(0, 5), OWN).fragments
    first = commits.publish_full(store, "d", OWN, staged, "one", 0)
    assert commits.publish_full(store, "d", OWN, staged, "one", 0) == first == store.head("d")


def test_rows_are_kept_dropped_and_added_in_one_version(store):
    base = publish(store)
    dropped = store.addresses(base, pa.array([0, 7]).to_numpy())
    new = store.stage("d", rows(20, 22), OWN).fragments
    after = store.snapshot("d", commits.publish_incremental(store, base, dropped, new, "two", base.version))
    assert numbers(store, after) == [1, 2, 3, 4, 5, 6, 8, 9, 20, 21]
    assert store.take(after, [0, 6, 9], ["media", "x"]).to_pylist() == [
        {"media": b"1", "x": 1}, {"media": b"8", "x": 8}, {"media": b"21", "x": 21},
    ]  # fmt: skip
    assert numbers(store, base) == list(range(10))  # the old version is untouched


def test_an_increment_on_an_older_base_restores_it_first(store):
    base = publish(store)
    commits.publish_full(store, "d", OWN, store.stage("d", rows(50, 52), OWN).fragments, "other", store.head("d"))
    after = commits.publish_incremental(
        store, base, {0: [0]}, store.stage("d", rows(20, 21), OWN).fragments, "two", base.version
    )
    assert numbers(store, store.snapshot("d", after)) == [*range(1, 10), 20]


def test_two_increments_on_one_base_cannot_both_be_head_unnoticed(store):
    """Each commits its own version from the same base; neither sees the other's rows."""
    base = publish(store)
    versions = [
        commits.publish_incremental(
            store, base, {}, store.stage("d", rows(n, n + 1), OWN).fragments, f"s{n}", base.version
        )
        for n in (30, 40)
    ]
    assert [numbers(store, store.snapshot("d", v))[10:] for v in versions] == [[30], [40]]


def test_a_stale_update_is_refused_by_lance(store):
    """The compare-and-swap itself: an Update that names every fragment of a version that is no longer HEAD."""
    base = publish(store)
    head = store.open(base)
    operation = lance.LanceOperation.Update(updated_fragments=[f.metadata for f in head.get_fragments()])
    commits._try_commit(store, "d", operation, base.version, "first")
    with pytest.raises(OSError, match="conflict"):
        lance.LanceDataset.commit(store.uri("d"), lance.Transaction(base.version, operation), max_retries=0)


def test_a_vanished_or_cut_file_is_noticed_before_the_commit(store):
    big = [row | {"media": b"x" * 5_000_000} for row in rows(0, 2)]
    for kind in ("*.lance", "*/*.blob"):
        staged = store.stage("d", big, OWN)
        assert len(staged.files) == 3 and store.missing("d", staged.files) == set()
        data_folder = store.bucket.folder / "datasets" / "d.lance" / "data"
        data = next(p for p in data_folder.glob(kind) if p.stat().st_size > 10)
        os.truncate(data, 10)
        assert store.missing("d", staged.files) == {f"datasets/d.lance/data/{data.relative_to(data_folder)}"}
        shutil.rmtree(store.bucket.folder / "datasets")


def test_a_key_that_stands_twice_is_refused(store):
    staged = [*store.stage("d", rows(0, 5), OWN).fragments, *store.stage("d", rows(4, 6), OWN).fragments]
    with pytest.raises(RunError, match="same key twice"):
        store.snapshot("d", commits.publish_full(store, "d", OWN, staged, "one", 0))


def test_an_empty_dataset_is_a_version_like_any_other(store):
    snapshot = store.snapshot("d", commits.publish_full(store, "d", OWN, [], "one", 0))
    assert snapshot.rows == 0 and int(snapshot.digest, 16) == 0


KEYS = st.lists(st.binary(min_size=16, max_size=16), unique=True, max_size=40)


@given(KEYS, st.randoms())
def test_a_digest_is_independent_of_order_and_chunks_and_additive(keys, random):
    shuffled = random.sample(keys, len(keys))
    cut = random.randint(0, len(keys))
    whole = digest_of(pa.array(keys, pa.binary(16)))
    chunks = pa.chunked_array([pa.array(shuffled[:cut], pa.binary(16)), pa.array(shuffled[cut:], pa.binary(16))])
    parts = sum(int(digest_of(chunk), 16) for chunk in chunks.chunks) % (1 << 128)
    assert whole == digest_of(chunks) == f"{parts:032x}"


@given(KEYS, st.binary(min_size=16, max_size=16))
def test_a_digest_differs_when_a_key_is_added(keys, key):
    if key not in keys:
        assert digest_of(pa.array(keys, pa.binary(16))) != digest_of(pa.array([*keys, key], pa.binary(16)))


@pytest.mark.parametrize("clause", ["nosuch > 1", "x > > 1", "x +", "'a"])
def test_a_clause_that_is_no_condition_is_refused_in_one_sentence(clause):
    with pytest.raises(UserError, match=r"select\.mine=.*write SQL over x, media") as caught:
        check_clauses(OWN, {"mine": clause})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


PLAIN = pa.schema([pa.field("x", pa.int64()), pa.field("tags", pa.list_(pa.string()))])


def test_many_small_staged_fragments_are_merged_into_few_before_the_commit(store):
    made = [{**row, "tags": ["a", str(row["x"])]} for row in rows(0, 520)]
    staged = [f for i in range(0, 520, 2) for f in store.stage("d", made[i : i + 2], PLAIN).fragments]
    groups = compact.groups(staged, PLAIN)
    assert [len(g) for g in groups] == [260]
    merged = compact.merge_staged(store, "d", groups[0], PLAIN)
    assert (len(merged.fragments), merged.rows) == (1, 520)
    version = commits.publish_full(store, "d", PLAIN, list(merged.fragments), "one", 0)
    snapshot = store.snapshot("d", version)
    names = ["key", "parents", "label", "x", "tags"]
    assert store.scan(snapshot, names).to_pylist() == [{n: row[n] for n in names} for row in made]


def test_few_fragments_and_fragments_with_blobs_are_left_as_they_are(store):
    few = [f for i in range(5) for f in store.stage("d", [{**r, "tags": []} for r in rows(i, i + 1)], PLAIN).fragments]
    blobs = [f for i in range(20) for f in store.stage("d", rows(i, i + 1), OWN).fragments]
    assert compact.groups(few, PLAIN) == [[f] for f in few] and compact.groups(blobs, OWN) == [[f] for f in blobs]


def test_compaction_keeps_keys_parents_and_blobs_of_every_kind(store):
    """Inline, packed and dedicated blobs (Lance lays them out by size), some rows dropped before."""
    sizes = [3, 100_000, 5_000_000]
    made = [row | {"media": bytes([i % 251]) * sizes[i % 3]} for i, row in enumerate(rows(0, 9))]
    staged = [f for i in range(0, 9, 3) for f in store.stage("d", made[i : i + 3], OWN).fragments]
    base = store.snapshot("d", commits.publish_full(store, "d", OWN, staged, "one", 0))
    dropped = store.addresses(base, pa.array([4]).to_numpy())
    base = store.snapshot("d", commits.publish_incremental(store, base, dropped, [], "two", base.version))
    version = compact.rewrite(store, base, "three", small_too=True)
    after = store.snapshot("d", version)
    assert after.digest == base.digest and len(store.open(after).get_fragments()) == 1
    names = ["key", "parents", "label", "x", "media"]
    left = [row for row in made if row["x"] != 4]
    assert store.take(after, range(8), names).to_pylist() == [{n: row[n] for n in names} for row in left]
    assert compact.rewrite(store, after, "four", small_too=True) is None


@pytest.mark.parametrize(
    "other", [[pa.field("y", pa.string()), pa.field("x", pa.int64())], [pa.field("x", pa.int32())]]
)
def test_a_stage_that_got_other_columns_replaces_the_old_ones_and_goes_on_from_there(store, other):
    old = publish(store)
    own = pa.schema([*other, blob("media")])
    given = [row | {"y": "y"} for row in rows(0, 4)]
    new = store.snapshot(
        "d", commits.publish_full(store, "d", own, store.stage("d", given, own).fragments, "b", old.version)
    )
    assert numbers(store, new) == [0, 1, 2, 3] and numbers(store, old) == list(range(10))
    more = store.stage("d", [row | {"y": "z"} for row in rows(9, 10)], own).fragments
    after = store.snapshot("d", commits.publish_incremental(store, new, {}, more, "c", new.version))
    assert numbers(store, after) == [0, 1, 2, 3, 9]
    assert [row["media"] for row in store.take(after, [0, 4], ["media"]).to_pylist()] == [b"0", b"9"]
