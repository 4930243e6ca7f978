"""Images through the same run: digits as a user has them, TFDS sets by name, and refusals."""

import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

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
_SETTINGS = f"""
losses=kl,{MIXED}; seeds=2; temperature=4; checkpoint.every=20; evaluation.temperatures=(0.0,1.0);
teacher.width=8; teacher.depth=2; teacher.steps=100; teacher.batch_size=32;
teacher.optimizer.learning_rate=3e-2; teacher.optimizer.warmup_steps=5;
student.steps=60; student.batch_size=32;
student.optimizer.learning_rate=5e-2; student.optimizer.warmup_steps=5
"""
SMALL = [f"--config.{setting.strip()}" for setting in _SETTINGS.split(";")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images") / "run"
    return folder, runs.succeed("distill", commands.DIGITS, f"--workdir={folder}", *SMALL)


def test_a_run_on_digits_is_a_run(finished):
    folder, printed = finished
    rows = read(folder)
    assert {row["context"] for row in rows} == {"images"}
    measures = ["acceptance", "acceptance_greedy_draft", "accuracy", "difference", "greedy_match"]
    assert sorted({row["measure"] for row in rows}) == measures
    assert "0.9*kl" in printed
    assert (folder / "report.html").stat().st_size > 10_000
    matched = {
        row["loss"]: float(row["value"])
        for row in rows
        if (row["measure"], row["seed"]) == ("greedy_match", "all")
    }
    assert min(matched["kl"], matched[MIXED]) > matched["untrained"] + 0.1
    assert Workdir(folder).facts()[teacher.ACCURACY] > 0.7


def restored(folder):
    run = Workdir(folder)
    spec, data = run.spec(), run_data.load(run)
    return run, spec, data, teacher.restore(spec.teacher, run, data.vocab_size)


def test_agreement_is_what_the_logits_say(finished):
    """One student, restored by itself, against NumPy."""
    folder, _ = finished
    run, _, data, frozen = restored(folder)
    student = students.restore_one(str(folder), loss="kl", seed=1)
    batch = data.splits["test"].batch()
    inputs = jnp.asarray(batch["inputs"])
    output = frozen(inputs)
    logits = [np.asarray(z, np.float64)[:, 0] for z in (output.logits, student(inputs, output))]
    p, q = (np.exp(z - z.max(-1, keepdims=True)) for z in logits)
    p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
    right = batch["labels"][:, 0]
    expected = {
        ("acceptance", "1"): np.minimum(p, q).sum(-1).mean(),
        ("greedy_match", "0"): (p.argmax(-1) == q.argmax(-1)).mean(),
        ("accuracy", "0"): (q.argmax(-1) == right).mean(),
    }
    measured = {
        (row["measure"], row["temperature"]): float(row["value"])
        for row in read(folder)
        if (row["loss"], row["seed"]) == ("kl", "1")
    }
    for key, value in expected.items():
        np.testing.assert_allclose(measured[key], value, rtol=1e-5, err_msg=str(key))
    accuracy = (p.argmax(-1) == right).mean()
    np.testing.assert_allclose(run.facts()[teacher.ACCURACY], accuracy, atol=1e-4)


class Stopping:
    """A tracker that stops its run as Ctrl-C does."""

    def write(self, step, students, clock):
        if step == 36:  # its metrics come while step 37 runs
            signal.raise_signal(signal.SIGINT)

    def close(self):
        pass


def test_a_run_that_was_stopped_ends_the_same(finished, tmp_path):
    folder, _ = finished
    shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("students", "curves"))
    run, spec, data, frozen = restored(tmp_path / "run")
    monitoring = loop.Monitoring(trackers=[lambda stage: Stopping()])
    with pytest.raises(loop.Stopped, match="after step 37"):
        students.train(spec, run, data, frozen, monitoring)
    students.train(spec, run, data, frozen)
    for loss in ("kl", MIXED):
        resumed, whole = (
            students.restore(spec, Workdir(at), 10, loss)[0].params for at in (run.root, folder)
        )
        jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def open_images(source, directory, feature="image"):
    return images.open_images(
        source=source, feature=feature, label="label", directory=str(directory)
    )


def labels_of(part):
    pairs = zip(part.pixels, part.labels.tolist(), strict=True)
    return {image.tobytes(): label for image, label in pairs}


def test_digits_are_split_once(finished):
    splits = open_images("digits", finished[0] / "data")
    sizes = {name: len(part.labels) for name, part in splits.splits.items()}
    assert sum(sizes.values()) == 1797
    assert splits.classes == 10
    assert sizes["train"] > 1000 < 10 * min(sizes.values())
    each = [set(labels_of(part)) for part in splits.splits.values()]
    assert len(set.union(*each)) == sum(map(len, each))


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
    """Sets with train and test alone, as MNIST and CIFAR-10 are."""
    draw = np.random.default_rng(0)
    arrays = {
        name: draw.integers(0, 256, (count, 6, 6, 3)).astype(np.uint8)
        for name, count in (("train", 60), ("test", 9))
    }
    write_tfds_images(tmp_path, arrays, name="tiny", classes=4)
    splits = open_images("tiny", tmp_path).splits
    test, train, validation = (labels_of(splits[name]) for name in ("test", "train", "validation"))
    assert set(test) == {image.tobytes() for image in arrays["test"]}
    labels = {image.tobytes(): number % 4 for number, image in enumerate(arrays["train"])}
    assert train | validation == labels
    assert len(train) + len(validation) == len(labels) > len(train)


def test_tfds_sets_that_are_no_images_with_classes(tmp_path):
    """No feature or set of this name, no class, sizes that differ, more than a byte a pixel."""
    pixels = np.arange(6 * 4 * 4, dtype=np.uint16).reshape(6, 4, 4, 1)
    small = pixels.astype(np.uint8)
    for name, splits, first, message in (
        ("a", {"train": small}, -1, "`a`, split `train`: 1 images have no class in 0..3, .* -1"),
        ("b", {"train": small, "test": small[:, :3]}, 0, r"one size, .* \(None, None, 1\)"),
        ("c", {"train": pixels}, 0, r"`c` must have one size, .* \(4, 4, 1\), in uint16"),
    ):
        write_tfds_images(tmp_path, splits, name=name, classes=4, first=first)
        with pytest.raises(ValueError, match=message):
            open_images(name, tmp_path)
    write_tfds(tmp_path, {"train": ["a", "b"]}, name="words")
    write_tfds_images(tmp_path, {"test": small}, name="tests", classes=4)
    for source, feature, message in (
        ("a", "picture", "has no images `picture`; it has image"),
        ("words", "image", "has no images `image`; it has none"),
        ("mnist", "image", "TFDS data set `mnist` is not prepared in"),
        ("tests", "image", "has no images in a split `train`; it has test"),
    ):
        with pytest.raises(ValueError, match=message):
            open_images(source, tmp_path, feature)


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
    config = {"kind": models.CLASSIFIER, "depth": 5, "width": 2, "channels": 3}
    config |= {"norm_epsilon": 1e-5, "dtype": "float32"}

    @nnx.eval_shape
    def shapes():
        output = models.build_teacher(config, 7, nnx.Rngs(0))(jnp.ones((2, 8, 8, 3)))
        assert output.hidden is None
        return output.features, output.logits

    assert [x.shape for x in shapes] == [(2, 1, 32), (2, 1, 7)]


FOR_IMAGES = r"which is for `config\.data\.kind` images"


@pytest.mark.parametrize(
    ("module", "key", "value", "message"),
    [
        (digits_config, "student.kind", "kangaroo", "must be 'classifier' .* data are images"),
        (digits_config, "teacher.kind", "decoder", "must be 'classifier' .* data are images"),
        (digits_config, "student.vocabulary", 8, "must be 0 if the data are images, got 8"),
        (digits_config, "data.context", "teacher", "must be 'corpus' .* data are images"),
        (digits_config, "evaluation.contexts", "corpus,generated", "must be 'images'"),
        (smoke, "student.kind", "classifier", FOR_IMAGES),
        (smoke, "teacher.kind", "classifier", FOR_IMAGES),
        (smoke, "evaluation.contexts", "images", FOR_IMAGES),
    ],
)
def test_options_of_the_other_kind_of_data_are_refused(module, key, value, message):
    config = module.get_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=rf"`config\.{key}`.*{message}"):
        run_config.check(config.to_dict())
