"""Teacher outputs on disk: those of online training, in its order, and of no other run."""

import contextlib
import dataclasses
import itertools
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import smoke
from jaxdiv.data import row_cache
from jaxdiv.runs import progress
from jaxdiv.runs.specs import RunSpec
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import on_policy, run_data, sharding, teacher, teacher_cache
from tests import commands

B, LENGTH, PROMPT, T = 8, 32, 4, 1.5
STEPS = 70  # more than an epoch


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that reads its teacher's outputs from a cache."""

    spec: RunSpec
    workdir: Workdir
    data: run_data.TextData

    def prepare(self, **changes):
        """Prepares the cached teacher, of another spec if there are changes."""
        spec = with_changes(self.spec, **changes)
        return teacher_cache.prepare(spec, self.workdir, self.data)


def with_changes(spec, **groups):
    """Returns a spec with other fields; those of a group are a dict."""
    for name, value in groups.items():
        is_group = isinstance(value, dict)
        value = dataclasses.replace(getattr(spec, name), **value) if is_group else value
        spec = dataclasses.replace(spec, **{name: value})
    return spec


@pytest.fixture(scope="module")
def run(tmp_path_factory, texts):
    """A run on text of which its teacher writes half, in shards of 100 rows or so."""
    root = tmp_path_factory.mktemp("cache")
    config = smoke.get_config().to_dict() | {"losses": "kl", "temperature": T}
    config["data"] |= {"files": f"{texts}/*.txt", "context": "teacher", "context_prompt": PROMPT}
    config["student"]["steps"] = STEPS
    config["teacher"]["cache"] = str(root / "outputs")
    config["teacher"]["checkpoint"] = str(commands.untrained(root / "teacher", texts))
    workdir = Workdir(root / "run")
    workdir.initialize_or_resume(config)
    spec = RunSpec.from_config(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_cache, "_SHARD_BYTES", 100 * 4 * LENGTH * (4 + LENGTH))
        patch.setattr(teacher_cache, "_TOKENS", 2 * B * LENGTH)  # of two steps at once
        unfinished = Run(spec, workdir, run_data.prepare(spec, workdir))
        with interrupted(patch, after=10), pytest.raises(KeyboardInterrupt):
            unfinished.prepare()
        patch.setattr(progress, "bar", BAR)
        names = sorted(path.name for path in (root / "outputs").iterdir())
        assert names == ["manifest.json", "train-00000.array_record"]
        before = (root / "outputs/train-00000.array_record").stat().st_mtime_ns
        unfinished.prepare()
        assert (root / "outputs/train-00000.array_record").stat().st_mtime_ns == before
    return unfinished


BAR = progress.bar


@contextlib.contextmanager
def interrupted(patch, after):
    """Raises KeyboardInterrupt in the batch `after` of the making."""

    @contextlib.contextmanager
    def bar(*arguments, **options):
        count = itertools.count(1)

        def advance():
            if next(count) == after:
                raise KeyboardInterrupt

        yield advance

    patch.setattr(progress, "bar", bar)
    yield


def test_rows_are_those_of_online_training_in_its_order_epoch_by_epoch(run):
    cached, stage = run.prepare(), run.spec.student_stage
    assert cached.rows["train"] == (len(run.data.splits["train"].ids) - 1) // LENGTH
    whole = cached.rows["train"] // B
    assert whole + 2 < STEPS
    frozen = teacher.restore(run.spec.teacher, run.workdir, run.data.vocab_size)
    write = jax.jit(
        on_policy.writer(run.spec.on_policy, frozen, None, run.data.tokenizer.end_of_text)
    )
    batches = zip(cached.batches(stage), run.data.batches(stage), strict=True)
    for number, (batch, online) in enumerate(itertools.islice(batches, STEPS)):
        # A text that the teacher writes begins with the corpus's own tokens.
        np.testing.assert_array_equal(batch["inputs"][:, :PROMPT], online["inputs"][:, :PROMPT])
        if number in (0, 1, whole - 1):
            online = write(frozen.params, None, online, number)
            for name, values in online.items():
                np.testing.assert_array_equal(batch[name], values)


def test_outputs_are_the_teachers_rounded_to_bfloat16(run):
    cached, mesh = run.prepare(), sharding.single_device_mesh()
    frozen = teacher.restore(run.spec.teacher, run.workdir, run.data.vocab_size)
    assert [*cached.params] == ["head"]
    held_out = run_data.validation_batch(run.spec.student_stage, run.data, mesh)
    for batch, inputs in (
        (jax.tree.map(jnp.asarray, next(cached.batches(run.spec.student_stage))), None),
        (cached.validation_batch(mesh), held_out["inputs"]),
    ):
        expected = frozen(batch["inputs"] if inputs is None else inputs, exit_layer=1)
        output = cached.output(cached.params, batch, 1, T)
        for name in ("features", "hidden"):
            values = getattr(output, name)
            assert values.dtype == np.float32
            np.testing.assert_allclose(values, getattr(expected, name), rtol=2**-8, atol=1e-6)
        np.testing.assert_array_equal(output.head, expected.head)
        assert output.normalizer is None


def test_a_restored_position_goes_on_with_the_same_batches(run):
    cached, stage = run.prepare(), run.spec.student_stage
    batches = cached.batches(stage)
    list(itertools.islice(batches, 3))
    position = json.loads(json.dumps(batches.get_state()))
    rest = cached.batches(stage, slice(2, 4))
    rest.set_state(position)
    batch, part = next(batches), next(rest)
    for name, values in batch.items():
        np.testing.assert_array_equal(part[name], values[2:4])


def test_a_tied_head_is_the_transposed_embedding(run):
    cached = run.prepare()
    tied = dataclasses.replace(cached, spec=with_changes(run.spec, teacher={"tied_head": True}))
    batch = tied.validation_batch(sharding.single_device_mesh())
    head = jnp.arange(6.0).reshape(3, 2)
    output = tied.output({"embedding": head}, batch, None, 1.0)
    np.testing.assert_array_equal(output.head, head.T)
    assert output.normalizer is None


def test_a_whole_cache_is_read_without_the_teachers_layers_and_a_damaged_one_made_again(
    run, monkeypatch, capsys
):
    restored = []
    restore = teacher.restore
    monkeypatch.setattr(teacher, "restore", lambda *a: restored.append(a) or restore(*a))
    before = next(run.prepare().batches(run.spec.student_stage))
    assert not restored
    path = run.prepare().cache.folder / "train-00001.array_record"
    path.write_bytes(path.read_bytes()[:-5])
    capsys.readouterr()
    after = next(run.prepare().batches(run.spec.student_stage))
    assert len(restored) == 1
    assert f"{path} has" in capsys.readouterr().err.replace("\n", "")
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 2.0}, "is of another temperature, 1.5 there and 2.0 here"),
        ({"seed": 1}, "is of another seed, 0 there and 1 here"),
        ({"dtype": "bfloat16"}, "is of another type of activations"),
        (
            {"data": {"context_share": 0.25}},
            "4 of 8 rows after 4 tokens there and 2",
        ),
        ({"data": {"loss_on": "assistant"}}, "is of another loss_on, all there and assistant"),
        ({"data": {"sequence_length": 16}}, "is of another sequence length, 32 there and 16 here"),
        ({"student": {"exit_layer": 2}}, "lacks hidden_2 of bfloat16[32, 32]; it has inputs"),
    ],
)
def test_a_cache_of_other_rows_is_refused_by_name(run, change, message):
    with pytest.raises(ValueError, match=r"`config.teacher.cache`: the cache in") as error:
        run.prepare(**change)
    assert message in str(error.value)


def test_a_cache_of_another_model_is_refused(run, monkeypatch):
    facts = run.workdir.facts() | {"fingerprint of the teacher's files": "other"}
    monkeypatch.setattr(Workdir, "facts", lambda _: facts)
    with pytest.raises(ValueError, match=r"is of another model, .* there and other here"):
        run.prepare()


def test_a_disk_without_the_room_is_refused(run, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=10**5))
    with pytest.raises(ValueError, match=r"1\.\d MB are to be written to .* 0\.1 MB free; give"):
        run.prepare(teacher={"cache": str(tmp_path / "new"), "cache_rows": 250})
    assert not (tmp_path / "new").exists()


def test_a_cache_of_few_rows_for_decoders_of_a_draft_vocabulary(run, tmp_path):
    few = {"cache": str(tmp_path / "few"), "cache_rows": 20}
    spec = with_changes(run.spec, teacher=few, student={"kind": "decoder", "vocabulary": 100})
    cached = teacher_cache.prepare(spec, run.workdir, run.data)
    assert "hidden_1" not in cached.cache.fields
    assert cached.rows == {"train": 20, "validation": 3}
    batches = list(itertools.islice(cached.batches(spec.student_stage), 5))
    rows = np.concatenate([batch["inputs"] for batch in batches])
    first, second = (np.unique(rows[i : i + 20], axis=0) for i in (0, 20))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(rows[:20], rows[20:])
    output = cached.output(cached.params, jax.tree.map(jnp.asarray, batches[0]), None, T)
    logits = np.asarray(output.features, np.float64) @ np.asarray(output.head, np.float64)
    normalizer = np.log(np.exp(logits / T).sum(axis=-1))
    np.testing.assert_allclose(output.normalizer, normalizer, rtol=1e-6)


def test_a_corpus_of_few_batches_has_a_cache(run, tmp_path):
    windows, tokens = 3 * B - 2, run.data.splits["train"]  # two batches and no third
    count = windows * LENGTH + 1
    short = dataclasses.replace(tokens, ids=tokens.ids[:count], offsets=np.array([0, count]))
    data = dataclasses.replace(run.data, splits={**run.data.splits, "train": short})
    spec = with_changes(run.spec, teacher={"cache": str(tmp_path / "short")})
    cached = teacher_cache.prepare(spec, run.workdir, data)
    assert cached.rows["train"] == windows
