"""Rows on disk: what is written is read, in any order, and nothing else is taken for it."""

import contextlib
import json

import ml_dtypes
import numpy as np
import pytest

from jaxdiv.data import row_cache
from jaxdiv.data.row_cache import RowCache

FIELDS = {"inputs": ("<i4", (3,)), "features": ("bfloat16", (3, 2))}
IDENTITY = {"model": "a", "layers": 2}
ARRAYS = {
    "inputs": np.arange(30, dtype=np.int32).reshape(10, 3),
    "features": np.arange(60).reshape(10, 3, 2).astype(ml_dtypes.bfloat16) / 7,
}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Four rows a shard."""
    monkeypatch.setattr(row_cache, "_SHARD_BYTES", 4 * (12 + 12))


def open_cache(folder):
    return RowCache(folder, FIELDS, rows=10, batch_rows=2)


def write(cache, rows):
    """Writes what the cache lacks, two rows at once, and returns the names of these shards."""
    missing = cache.missing({"train": rows})
    for shard in missing:
        with cache.writing(shard, IDENTITY) as add:
            for start in range(shard.start, shard.start + shard.rows, 2):
                stop = min(start + 2, shard.start + shard.rows)
                add({name: array[start:stop] for name, array in ARRAYS.items()})
    return [shard.name.partition(".")[0] for shard in missing]


@pytest.fixture
def folder(tmp_path):
    """A folder with seven of the ten rows."""
    assert write(open_cache(tmp_path), 7) == ["train-00000", "train-00001"]
    return tmp_path


def check_rows(cache, rows):
    numbers = np.random.default_rng(0).permutation(rows)[: rows - 1]
    read = cache.reader("train", rows)(numbers)
    assert read.keys() == ARRAYS.keys()
    for name, values in read.items():
        np.testing.assert_array_equal(values, ARRAYS[name][numbers], strict=True)


def test_rows_are_read_by_number_and_a_longer_part_keeps_the_whole_shards(folder):
    cache = open_cache(folder)
    cache.check(IDENTITY, FIELDS)
    assert not cache.missing({"train": 7})
    assert not cache.missing({"train": 5})
    check_rows(cache, 7)
    check_rows(cache, 5)
    assert write(cache, 10) == ["train-00001", "train-00002"]
    check_rows(open_cache(folder), 10)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], "bytes, not"),
        (lambda content: content[:100] + b"\xff" + content[101:], "sha256"),
        (None, "is missing"),
    ],
)
def test_a_damaged_cut_or_lost_shard_is_named_and_made_again(folder, damage, message):
    path = folder / "train-00001.array_record"
    content = path.read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(content))
    (fault,) = open_cache(folder).missing({"train": 7}).values()
    assert str(path) in fault
    assert message in fault
    assert write(open_cache(folder), 7) == ["train-00001"]
    check_rows(open_cache(folder), 7)


def test_a_shard_whose_making_was_stopped_does_not_count(folder):
    cache = open_cache(folder)
    *_, shard = cache.missing({"train": 10})
    rows = {name: array[8:9] for name, array in ARRAYS.items()}
    with contextlib.suppress(KeyError), cache.writing(shard, IDENTITY) as add:
        add(rows)
        raise KeyError
    left_over = folder / ".train-00002.array_record.0.array_record"
    left_over.touch()
    assert write(open_cache(folder), 10) == ["train-00001", "train-00002"]
    assert not left_over.exists()
    check_rows(open_cache(folder), 10)


def test_rows_of_another_identity_or_without_a_field_are_refused(folder):
    cache = open_cache(folder)
    with pytest.raises(ValueError, match=rf"{folder} is of another model, a there and b here"):
        cache.check({"model": "b"}, FIELDS)
    with pytest.raises(ValueError, match=r"lacks more of bfloat16\[2\]; it has inputs, features"):
        cache.check(IDENTITY, {"more": ("bfloat16", (2,))})


@pytest.mark.parametrize(
    "change", [{"fields": 3}, {"shard_rows": 3}, {"batch_rows": 0}, {"shards": {"a": {}}}, None]
)
def test_another_manifest_is_refused(folder, change):
    path = folder / row_cache.MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | change if change else [manifest]))
    with pytest.raises(ValueError, match=rf"{path} is no manifest of a cache; give another folder"):
        open_cache(folder)
