"""Other students, types and data, and training that fails, in the smoke size."""

import pytest

from tests import commands, runs
from tests.fixtures_data import write_tfds
from tests.smoke_runs import SHORT, check_short, read

WILD = [
    "--config.student.optimizer.name=sgd",
    "--config.student.optimizer.learning_rate=1e30",
    "--config.student.optimizer.clip_norm=0.0",
    "--config.student.optimizer.warmup_steps=1",
    "--config.student.steps=2",
]
VARIANTS = {
    "decoder": ["--config.student.kind=decoder"],
    "bfloat16": ["--config.dtype=bfloat16"],
    "wild": WILD,
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Each variant's ended command and its folder."""
    folder = tmp_path_factory.mktemp("variants")
    texts = runs.write_texts(folder / "texts")
    splits = {"train": [path.read_text(encoding="utf-8") for path in sorted(texts.glob("*.txt"))]}
    write_tfds(folder / "data", splits, name="notes", feature="body")
    notes = [
        "--config.data.source=notes",
        "--config.data.feature=body",
        f"--config.data.directory={folder}/data",
    ]
    given = {
        name: [f"--config.data.files={texts}/*.txt", *flags] for name, flags in VARIANTS.items()
    } | {"tfds": notes}
    done = commands.many(
        "distill", [[*SHORT, f"--workdir={folder}/{name}", *flags] for name, flags in given.items()]
    )
    return {name: (one, folder / name) for name, one in zip(given, done, strict=True)}


@pytest.mark.parametrize("name", ["decoder", "bfloat16", "tfds"])
def test_smoke_with_another_student_type_or_data_set(name, ended):
    done, folder = ended[name]
    assert done.returncode == 0, done.stderr
    check_short(folder)


def test_students_that_are_not_finite_are_told_and_left_out(ended):
    done, folder = ended["wild"]
    assert done.returncode == 0, done.stderr
    assert "not finite, left out of the table" in done.stderr
    assert {row["loss"] for row in read(folder)} == {"untrained"}
