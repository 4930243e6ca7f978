"""Other types and data, and training that diverges, in the smoke size.

Decoder students are trained in test_smoke, on a teacher that came back from its export.
"""

import pytest

from tests import commands
from tests.fixtures_data import write_tfds
from tests.smoke_runs import SHORT, check_short, read

DIVERGING = {
    "optimizer.name": "sgd",
    "optimizer.learning_rate": "1e30",
    "optimizer.clip_norm": "0.0",
    "optimizer.warmup_steps": "1",
    "steps": "2",
}


@pytest.fixture(scope="module")
def variants(tmp_path_factory, texts):
    """Each variant's ended command and its folder."""
    folder = tmp_path_factory.mktemp("variants")
    splits = {"train": [path.read_text(encoding="utf-8") for path in sorted(texts.glob("*.txt"))]}
    write_tfds(folder / "data", splits, name="notes", feature="body")
    notes = {"source": "notes", "feature": "body", "directory": f"{folder}/data"}
    diverging = [f"--config.student.{key}={value}" for key, value in DIVERGING.items()]
    flags = {
        "other": ["--config.dtype=bfloat16", *(f"--config.data.{k}={v}" for k, v in notes.items())],
        "diverging": [f"--config.data.files={texts}/*.txt", *diverging],
    }
    arguments = [[*SHORT, f"--workdir={folder}/{name}", *more] for name, more in flags.items()]
    ended = commands.many("distill", arguments)
    return {name: (done, folder / name) for name, done in zip(flags, ended, strict=True)}


def test_smoke_with_another_type_and_data_set(variants):
    done, folder = variants["other"]
    assert done.returncode == 0, done.stderr
    check_short(folder)


def test_students_that_diverge_are_reported_and_left_out(variants):
    done, folder = variants["diverging"]
    assert done.returncode == 0, done.stderr
    assert "not finite, left out of the table" in done.stderr
    assert {row["loss"] for row in read(folder)} == {"untrained"}
