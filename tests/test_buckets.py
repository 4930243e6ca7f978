"""Runs in a bucket, by Orbax's own driver and a substitute for gcsfs, on a local server."""

import contextlib
import hashlib
import json
import os
import re
import signal
import socket

import fsspec
import jax
import numpy as np
import pytest

from jaxdiv import files
from jaxdiv.runs import lock, metrics, step_folders, trackers
from jaxdiv.runs.checkpoints import Checkpoints
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import run_data, students
from jaxdiv.training.teacher_sources import RunSource
from tests import buckets, commands, runs, stops

KILLS = 6
PROGRAM = """import sys
from tests import buckets
buckets.install()
import importlib
from experiments.common import cli
name = sys.argv.pop(1)
cli.run(importlib.import_module(f"experiments.{name}").main, resumes=name == "distill")
"""


@pytest.fixture(scope="module")
def server():
    """The server of this process, since tensorstore reads its address once."""
    before = dict(os.environ)
    with buckets.served() as server:
        buckets.install()
        yield server
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def bucket(server):
    """The server with an empty bucket."""
    server.become({})
    return server


@pytest.fixture
def root(bucket):
    return files.path_of(f"{buckets.ROOT}/a/run")


def values(number):
    return {"params": (np.full((2, 3), number, np.float32), np.arange(4)), "step": np.int32(number)}


def check(folder, number, **options):
    """Checks that the newest step, or `step`, is what `save` wrote."""
    with Checkpoints(folder, read_only=True) as checkpoints:
        tree, progress = checkpoints.restore(values(0), **options)
    assert progress == {"at": number}
    jax.tree.map(np.testing.assert_array_equal, tree, values(number))


def save(folder, *numbers, keep=None):
    with Checkpoints(folder, keep=keep) as checkpoints:
        for number in numbers:
            checkpoints.save(number, values(number), {"at": number})


def test_files_are_written_whole_and_read(bucket, root):
    files.write_json(root / "a.json", {"é": [1]})
    assert files.read_json(root / "a.json") == {"é": [1]}
    with contextlib.suppress(ZeroDivisionError), files.replacing(root / "a.json") as temporary:
        temporary.write_text("{")
        raise ZeroDivisionError
    with files.replacing(root / "below" / "b.npz") as temporary:
        np.savez(temporary, values=np.arange(3))
    assert [name for name, _ in bucket.changes] == ["a/run/a.json", "a/run/below/b.npz"]
    assert files.below(root) == {"a.json": root / "a.json", "below/b.npz": root / "below" / "b.npz"}
    files.empty(root)
    assert bucket.objects == {}


def test_what_is_no_place_for_a_run_is_refused(monkeypatch, root):
    message = r"s3://b/run: s3:// is not known; give a folder of this machine, or gs://"
    with pytest.raises(ValueError, match=message):
        Workdir("s3://b/run")
    message = "gs://bucket/a/run is in a bucket; give a folder of this machine"
    with pytest.raises(ValueError, match=message):
        files.making_folder(root).__enter__()

    def missing(_):
        raise ImportError

    files._epath.cache_clear()
    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    message = "gs:// needs a package that is not there: pip install gcsfs"
    with pytest.raises(ValueError, match=message):
        Workdir("gs://b/run")


def test_a_bucket_out_of_reach_is_reported_and_damages_nothing(bucket, root):
    save(root, 1, 2)
    bucket.refuses = True
    try:
        with pytest.raises(OSError, match=r"gs://bucket/a/run can't be reached: OSError"):
            Workdir(root)
        with pytest.raises(OSError, match="403"):
            step_folders.manifest_fault(root / "2")
    finally:
        bucket.refuses = False
    check(root, 2)


def test_steps_come_back_and_old_ones_leave_nothing(bucket, root):
    with pytest.raises(FileNotFoundError, match="no checkpoint in gs://bucket/a/run; train first"):
        Checkpoints(root, read_only=True)
    save(root, 1, 2, 3, keep=2)
    check(root, 3)
    check(root, 2, step=2)
    assert {name.split("/")[2] for name in bucket.objects} == {"2", "3"}
    save(root, 3)
    assert not any(name.startswith("a/run/1/") for name in bucket.objects)


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_after_any_killed_save_the_newest_whole_step_counts(bucket, root, every):
    save(root, 1)
    before = dict(bucket.objects)
    bucket.changes.clear()
    save(root, 2, keep=1)
    changes, manifest = list(bucket.changes), f"a/run/2/{step_folders.MANIFEST}"
    counts_from = [name for name, _ in changes].index(manifest) + 1
    for name, content in changes[:counts_from]:
        assert name.startswith("a/run/2/")
        assert content is not None
    assert changes[counts_from] == (f"a/run/1/{step_folders.MANIFEST}", None)
    around = (counts_from - 1, counts_from, counts_from + 1)
    for count in {*range(0, len(changes) + 1, every), *around}:
        left = dict(before)
        for name, content in changes[:count]:
            left[name] = content
        bucket.become({name: content for name, content in left.items() if content is not None})
        check(root, 2 if count >= counts_from else 1)
        with Checkpoints(root, keep=1) as checkpoints:
            damaged = checkpoints.damaged()
            assert len(damaged) == (0 < count < counts_from)
            assert all("checkpoint gs://bucket/a/run/2 is damaged" in line for line in damaged)
            checkpoints.save(2, values(2), {"at": 2})
        check(root, 2)
        listed = files.read_json(root / "2" / step_folders.MANIFEST)["sha256"]
        assert {*listed, step_folders.MANIFEST} == set(files.below(root / "2"))


def test_a_damaged_step_is_passed_over_and_replaced(bucket, root):
    save(root, 1, 2)
    arrays = [name for name in bucket.objects if name.startswith("a/run/2/state/")]
    name = max(arrays, key=lambda name: len(bucket.objects[name]))
    bucket.become({**bucket.objects, name: bucket.objects[name][:-1]})
    check(root, 1)
    save(root, 2)
    check(root, 2)


def test_a_second_run_is_warned_but_not_refused(bucket, root, capsys):
    with lock.hold(root):
        holder = json.loads(bucket.objects[f"a/run/{lock.NAME}"])
        assert (holder["host"], holder["process"]) == (socket.gethostname(), os.getpid())
        assert "no second run writes there" in capsys.readouterr().err
        with lock.hold(root):
            first = f"names process {os.getpid()} on {socket.gethostname()} since {holder['time']}"
            assert f"{first}, which was killed or" in " ".join(capsys.readouterr().err.split())
    assert bucket.objects == {}


def test_curves_grow_locally_and_are_uploaded_whole(bucket, root):
    def stage(cache, done):
        return trackers.TrackedStage(cache.local, "student", ("kl",), (0,), done, 9)

    def write(curves, step):
        curves.write(step, {"loss": np.array([[float(step)]])}, {})

    with (
        files.cached(root / "curves") as cache,
        contextlib.closing(metrics.Curves(stage(cache, 0))) as curves,
    ):
        write(curves, 1)
        assert bucket.objects == {}
        cache.send()
        cache.send()
        assert len(bucket.changes) == 1
        write(curves, 2)
    bucket.changes.clear()
    with (
        contextlib.suppress(ZeroDivisionError),
        files.cached(root / "curves") as cache,
        contextlib.closing(metrics.Curves(stage(cache, 1))) as curves,
    ):
        write(curves, 2)
        write(curves, 3)
        raise ZeroDivisionError
    assert metrics.read_curves(root / "curves", "student", [0])["value"].tolist() == [1, 2, 3]
    assert len(bucket.changes) == 1


def test_a_run_is_read_from_a_bucket(root, texts):
    commands.untrained(root, texts)
    run = Workdir(str(root))
    tokens = run_data.TextData.load(run).fingerprints()
    assert all(run.facts()[name] == value for name, value in tokens.items())
    assert students.restore_one(str(root), loss="kl", seed=1).params
    source = RunSource(str(root))
    source.checked_sizes()
    (manifest,) = (path for path in source.files if path.name == "manifest.json")
    assert source.fingerprint() == hashlib.sha256(manifest.read_bytes()).hexdigest()[:16]
    path = run.save_batch(3, {"inputs": np.arange(4)})
    with path.open("rb") as file, np.load(file) as arrays:
        assert arrays["inputs"].tolist() == [0, 1, 2, 3]


def succeed(name, *flags):
    done = runs.end(runs.start_code(PROGRAM, name, *flags))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_killed_runs_in_a_bucket_end_as_one_on_a_disk_and_serve_all_readers(
    bucket, tmp_path, texts
):
    runs.succeed("distill", *stops.flags(tmp_path / "disk", texts))
    flags = ["distill", *stops.flags("gs://bucket/run", texts)]
    draw = np.random.default_rng(0)
    for _ in range(KILLS):
        changes = len(bucket.changes) + draw.integers(1, 70)
        process = runs.start_code(PROGRAM, *flags)
        stops.stop_when(process, lambda end=changes: len(bucket.changes) >= end, signal.SIGKILL)
    succeed(*flags, "--config.log.every=4")
    with contextlib.closing(files.BucketCache(files.path_of("gs://bucket/run"))) as cache:
        cache.fetch()
        stops.check_same_end(tmp_path / "disk", cache.local)
        assert not (cache.local / lock.NAME).exists()
    of_run = "--workdir=gs://bucket/run"
    table = runs.succeed("report", f"--workdir={tmp_path / 'disk'}", "--markdown")
    assert succeed("report", of_run, "--markdown") == table
    succeed("acceptance", of_run, "--temperatures=0.7", "--output=gs://bucket/again")
    assert "again/report.html" in bucket.objects
    succeed("contributions.__main__", of_run)
    assert "run/contributions_by_rank.csv" in bucket.objects
    assert re.search(
        r"\d+ tokens in \d+ target calls", succeed("decode", of_run, "--loss=kl", "--max_tokens=8")
    )
    succeed("export", of_run, "--loss=tv", "--seed=1", f"--output={tmp_path / 'exported'}")
    assert (tmp_path / "exported" / "model.safetensors").exists()
    retrained = [
        *flags[:2],
        "--workdir=gs://bucket/taken",
        *flags[3:],
        "--config.teacher.checkpoint=gs://bucket/run",
    ]
    succeed(*retrained, "--profile=3:4")
    assert any(name.startswith("taken/profile/plugins/") for name in bucket.objects)
