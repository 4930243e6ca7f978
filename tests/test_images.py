"""Images through the same run: digits as a user has them, TFDS sets by name, agreement, and what is
refused."""

import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits as digits_config
from configs import smoke
from jaxdiv import models
from jaxdiv.data import images
from jaxdiv.runs import config as run_config
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import loop, run_data, students, teacher
from tests import commands, runs
from tests.fixtures_data import write_tfds, write_tfds_images
from tests.smoke_runs import read

MIXED = "0.9*kl + 0.1*ce_data"
_STAGES = {
    "teacher": {
        "width": 8,
        "depth": 2,
        "steps": 100,
        "batch_size": 32,
        "optimizer.learning_rate": 3e-2,
    },
    "student": {"steps": 60, "batch_size": 32, "optimizer.learning_rate": 5e-2},
}
SMALL = (
    *(f"--config.losses=kl,{MIXED}", "--config.seeds=2", "--config.temperature=4"),
    *(
        f"--config.{stage}.{key}={value}"
        for stage, keys in _STAGES.items()
        for key, value in keys.items()
    ),
    *(f"--config.{stage}.optimizer.warmup_steps=5" for stage in _STAGES),
    *("--config.checkpoint.every=20", "--config.evaluation.temperatures=(0.0,1.0)"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images") / "run"
    return folder, runs.succeed("distill", commands.DIGITS, f"--workdir={folder}", *SMALL)


def test_a_run_on_digits_is_a_run(finished):
    folder, printed = finished
    rows = read(folder)
    assert {row["context"] for row in rows} == {"images"}
    assert {row["measure"] for row in rows} == {
        *("acceptance", "acceptance_greedy_draft", "greedy_match", "accuracy", "difference"),
    }
    assert "0.9*kl" in printed
    assert (folder / "report.html").stat().st_size > 10_000
    matched = {
        row["loss"]: float(row["value"])
        for row in rows
        if (row["measure"], row["seed"]) == ("greedy_match", "all")
    }
    assert min(matched["kl"], matched[MIXED]) > matched["untrained"] + 0.1
    assert Workdir(folder).facts()[teacher.ACCURACY] > 0.7


def test_agreement_is_what_the_logits_say(finished):
    """Of one student, restored by itself, against NumPy."""
    folder, _ = finished
    run = Workdir(folder)
    config, gallery = run.config(), run_data.load(run)
    guide = teacher.restore(config, run, gallery.vocab_size)
    student = students.restore_one(str(folder), loss="kl", seed=1)
    batch = gallery.splits["test"].batch()
    inputs = jnp.asarray(batch["inputs"])
    output = guide(inputs)
    ours = np.asarray(student(inputs, output), np.float64)[:, 0]
    theirs = np.asarray(output.logits, np.float64)[:, 0]
    p, q = (np.exp(z - z.max(-1, keepdims=True)) for z in (theirs, ours))
    p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
    right = batch["labels"][:, 0]
    expected = {
        ("acceptance", "1"): np.minimum(p, q).sum(-1).mean(),
        ("greedy_match", "0"): (p.argmax(-1) == q.argmax(-1)).mean(),
        ("accuracy", "0"): (q.argmax(-1) == right).mean(),
    }
    found = {
        (row["measure"], row["temperature"]): float(row["value"])
        for row in read(folder)
        if (row["loss"], row["seed"]) == ("kl", "1")
    }
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-5, err_msg=str(key))
    np.testing.assert_allclose(
        run.facts()[teacher.ACCURACY], (theirs.argmax(-1) == right).mean(), atol=1e-4
    )


class Stopping:
    """A tracker that stops its run as Ctrl-C does."""

    def write(self, step, students, clock):
        if step == 37:
            signal.raise_signal(signal.SIGINT)

    def close(self):
        pass


def test_a_run_that_was_stopped_ends_the_same(finished, tmp_path):
    folder, _ = finished
    shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("students", "curves"))
    run = Workdir(tmp_path / "run")
    config, gallery = run.config(), run_data.load(run)
    guide = teacher.restore(config, run, gallery.vocab_size)
    with pytest.raises(loop.Stopped, match="after step 37"):
        students.train(config, run, gallery, guide, also=[lambda stage: Stopping()])
    students.train(config, run, gallery, guide)
    for loss in ("kl", MIXED):
        ours, theirs = (
            students.restore(config, Workdir(at), 10, loss)[0].params for at in (run.root, folder)
        )
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_digits_are_split_once(finished):
    splits = images.open_images(
        source="digits", feature="image", label="label", directory=str(finished[0] / "data")
    )
    sizes = {name: len(part.labels) for name, part in splits.splits.items()}
    assert sum(sizes.values()) == 1797
    assert splits.classes == 10
    assert sizes["train"] > 1000 < 10 * min(sizes.values())
    seen = [{image.tobytes() for image in part.pixels} for part in splits.splits.values()]
    assert len(set.union(*seen)) == sum(map(len, seen))


def test_batches_are_an_epoch_once_and_go_on_where_they_were():
    pixels = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    whole = images.LabelledImages(pixels, np.arange(10, dtype=np.int32))
    one = images.batches(whole, batch_size=5, seed=3)
    first, second = next(one), next(one)
    assert sorted(np.concatenate([first["labels"], second["labels"]])[:, 0]) == list(range(10))
    np.testing.assert_allclose(255 * first["inputs"][:, 0, 0, 0], first["labels"][:, 0], rtol=1e-6)
    position, third = one.get_state(), next(one)
    other = images.batches(whole, batch_size=5, seed=3, rows=slice(1, 3))
    other.set_state(position)
    np.testing.assert_array_equal(next(other)["labels"], third["labels"][1:3])
    with pytest.raises(ValueError, match="a batch of 11 needs as many images, got 10"):
        images.batches(whole, batch_size=11, seed=0)


def test_tfds_sets_by_name(tmp_path):
    """As MNIST and CIFAR-10 are, train and test alone."""
    draw = np.random.default_rng(0)
    splits = {
        "train": draw.integers(0, 256, (60, 6, 6, 3)),
        "test": draw.integers(0, 256, (9, 6, 6, 3)),
    }
    splits = {name: pixels.astype(np.uint8) for name, pixels in splits.items()}
    write_tfds_images(tmp_path, splits, name="tiny", classes=4)
    found = images.open_images(
        source="tiny", feature="image", label="label", directory=str(tmp_path)
    )
    parts = {
        name: {image.tobytes() for image in part.pixels} for name, part in found.splits.items()
    }
    assert parts["test"] == {image.tobytes() for image in splits["test"]}
    assert parts["train"] | parts["validation"] == {image.tobytes() for image in splits["train"]}
    assert not parts["train"] & parts["validation"]
    assert parts["validation"]
    of = {image.tobytes(): number % 4 for number, image in enumerate(splits["train"])}
    for image, label in zip(
        found.splits["train"].pixels, found.splits["train"].labels, strict=True
    ):
        assert of[image.tobytes()] == label
    with pytest.raises(ValueError, match="has no images `picture`; it has image"):
        images.open_images(source="tiny", feature="picture", label="label", directory=str(tmp_path))
    write_tfds(tmp_path, {"train": ["a", "b"]}, name="words")
    with pytest.raises(ValueError, match="has no images `image`; it has none"):
        images.open_images(source="words", feature="image", label="label", directory=str(tmp_path))
    with pytest.raises(ValueError, match="TFDS data set `mnist` is not prepared in"):
        images.open_images(source="mnist", feature="image", label="label", directory=str(tmp_path))


def test_tfds_sets_that_are_no_images_with_classes(tmp_path):
    """No class told, sizes that differ, more than a byte a pixel: a line each."""
    pixels = np.arange(6 * 4 * 4, dtype=np.uint16).reshape(6, 4, 4, 1)
    small = pixels.astype(np.uint8)
    known = {"classes": 4}
    write_tfds_images(tmp_path, {"train": small}, name="untold", first=-1, **known)
    write_tfds_images(tmp_path, {"train": small, "test": small[:, :3]}, name="uneven", **known)
    write_tfds_images(tmp_path, {"train": pixels}, name="deep", **known)
    for name, told in {
        "untold": "`untold`, split `train`: 1 images have no class in 0..3, the first -1",
        "uneven": r"`uneven` must have one size, in uint8; they have \(None, None, 1\)",
        "deep": r"`deep` must have one size, in uint8; they have \(4, 4, 1\), in uint16",
    }.items():
        with pytest.raises(ValueError, match=told):
            images.open_images(source=name, feature="image", label="label", directory=str(tmp_path))


def test_damaged_images_are_named(tmp_path):
    good = images.LabelledImages(np.zeros((2, 3, 3, 1), np.uint8), np.zeros(2, np.int32))
    good.save(tmp_path / "good.npz")
    np.testing.assert_array_equal(
        images.LabelledImages.load(tmp_path / "good.npz").pixels, good.pixels
    )
    np.savez(tmp_path / "scalar.npz", pixels=np.uint8(1), labels=np.int32(1))
    np.savez(tmp_path / "fewer.npz", pixels=good.pixels, labels=good.labels[:1])
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:-9])
    for name in ("scalar.npz", "fewer.npz", "cut.npz", "none.npz"):
        with pytest.raises(ValueError, match=f"can't read images from .*{name}"):
            images.LabelledImages.load(tmp_path / name)


def test_a_classifier_halves_its_images_and_is_no_decoder():
    shape = {
        "kind": models.CLASSIFIER,
        "depth": 5,
        "width": 2,
        "channels": 3,
        "norm_epsilon": 1e-5,
        "dtype": "float32",
    }
    model = models.build_teacher(shape, 7, models.builders.nnx.Rngs(0))
    output = model(jnp.ones((2, 8, 8, 3)))
    assert output.features.shape == (2, 1, 32)
    assert output.logits.shape == (2, 1, 7)
    assert output.hidden is None


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        (
            "student.kind",
            "kangaroo",
            "`config.student.kind` must be 'classifier' where data are images",
        ),
        (
            "teacher.kind",
            "decoder",
            "`config.teacher.kind` must be 'classifier' where data are images",
        ),
        ("data.context", "teacher", "`config.data.context` must be 'corpus' where data are images"),
        (
            "evaluation.contexts",
            "corpus,generated",
            "`config.evaluation.contexts` must be 'images'",
        ),
    ],
)
def test_what_is_for_text_is_refused(key, value, told):
    config = digits_config.get_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=told):
        run_config.check(config.to_dict())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("student.kind", "classifier"),
        ("teacher.kind", "classifier"),
        ("evaluation.contexts", "images"),
    ],
)
def test_what_is_for_images_is_refused(key, value):
    config = smoke.get_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=r"which is for `config\.data\.kind` images"):
        run_config.check(config.to_dict())
