"""Whatever stands in a config, a list of losses, a corpus or a file of a run: it is taken, or
refused in one line."""

import json
import os
import pathlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jaxdiv
from configs import smoke
from experiments.common import cli, prompts
from jaxdiv import data, files
from jaxdiv.data import documents, pipeline, tokenizer
from jaxdiv.models import llama, safetensors_io
from jaxdiv.reporting import results
from jaxdiv.runs import config as run_config
from jaxdiv.runs import lock, metrics, progress, step_folders, trackers
from jaxdiv.runs.specs import RunSpec
from jaxdiv.runs.workdir import Workdir
from jaxdiv.speculative import trees
from jaxdiv.training import run_data, teacher_sources
from tests import gguf_files, llama_folders, reporting_cases, runs
from tests.fixtures_data import sentences

NASTY = [
    "<script>alert(1)</script>",
    "../../etc/passwd",
    "\x1b[2J",
    "\0",
    "\ud800",
    "\u2028",
    "1e999",
    "NaN",
    "[" * 2000,
]

short = st.one_of(
    st.text(st.characters(), max_size=80),
    st.sampled_from(NASTY),
    st.lists(
        st.sampled_from([*"()=,.*+-0189 eE", "kl", "tv", "jsd", "beta", "inf", "nan", *NASTY[:4]])
    ).map("".join),
)
text = st.one_of(
    short, st.sampled_from(["a" * 1_000_000, "(" * 1_000_000, "kl(" + "alpha=1," * 100_000])
)
plain = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), short, st.just("a" * 1_000_000)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(short, inner, max_size=4)),
    max_leaves=8,
)


@st.composite
def changed_configs(draw):
    """The smoke config with some of its keys set to anything, lost or new."""
    config = smoke.get_config().to_dict()
    for _ in range(draw(st.integers(1, 3))):
        group = draw(
            st.sampled_from(
                [config, *(value for value in config.values() if isinstance(value, dict))]
            )
        )
        key = (
            draw(st.one_of(st.sampled_from(sorted(group, key=str)), text)) if group else draw(text)
        )
        if draw(st.booleans()):
            group[key] = draw(plain)
        else:
            group.pop(key, None)
    return config


def changed(whole):
    """Bytes near those of a file, JSON near it, and anything."""

    @st.composite
    def near(draw):
        content = bytearray(whole)
        for _ in range(draw(st.integers(1, 4))):
            at = draw(st.integers(0, len(content)))
            content[at : at + draw(st.integers(0, 9))] = draw(st.binary(max_size=9))
        return bytes(content)

    @st.composite
    def near_json(draw):
        value = json.loads(whole)
        place = value
        while isinstance(place, dict) and place:
            key = draw(st.sampled_from(sorted(place)))
            if not isinstance(place[key], dict) or draw(st.booleans()):
                place[key] = draw(plain)
                break
            place = place[key]
        return json.dumps(value).encode()

    cut = st.integers(0, len(whole)).map(lambda end: whole[:end])
    nasty = st.sampled_from(
        [b"", b"\0" * 100, b"[" * 100_000, b"1" * 10_000, b"\x80\x04N.", b"PK\x03\x04" + bytes(99)]
    )
    any_json = plain.map(lambda value: json.dumps(value).encode())
    strategies = [near(), cut, nasty, st.binary(max_size=200), any_json]
    try:
        json.loads(whole)
    except ValueError:
        return st.one_of(*strategies)
    return st.one_of(*strategies, near_json())


def taken_or_refused(act, *named):
    """`act` ends, or raises a plain ValueError or OSError that says each of `named`."""
    try:
        act()
    except (ValueError, OSError) as refused:
        error = refused
    else:
        return
    # Those that Python and NumPy raise of themselves are of subclasses, or say nothing of the
    # thing.
    assert type(error) in (ValueError, OSError, FileNotFoundError), repr(error)
    assert all(str(name) in str(error) for name in named), repr(error)


def fuzz(check, strategy, examples, options):
    """Checks so many examples; `options` are of hypothesis."""
    quiet = settings(max_examples=examples, suppress_health_check=list(HealthCheck), **options)
    quiet(given(strategy)(check))()


PARSERS = {
    "losses": (jaxdiv.split, text),
    "loss": (jaxdiv.get, text),
    "config": (run_config.check, changed_configs()),
    "anything as config": (run_config.check, st.dictionaries(short, plain, max_size=3)),
    "tree": (trees.parse, text),
    "documents": (lambda content: documents.read([("name", content)]), st.binary()),
    "file names": (lambda name: documents.fraction(os.fsdecode(name)), st.binary()),
    "prompt": (lambda line: prompts._from_json(line, "here"), text),
}


BRIEF_AND_LONG = pytest.mark.parametrize(
    ("cases", "options"),
    [
        pytest.param({"parsers": 100, "readers": 50}, {}, id="brief"),
        pytest.param(
            {"parsers": 10_000, "readers": 200},
            {"derandomize": False},
            id="long",
            marks=pytest.mark.slow,
        ),
    ],
)


@BRIEF_AND_LONG
@pytest.mark.parametrize("name", PARSERS)
def test_parsers(name, cases, options):
    parse, strategy = PARSERS[name]
    fuzz(lambda value: taken_or_refused(lambda: parse(value)), strategy, cases["parsers"], options)


def read_manifest(path):
    assert step_folders.manifest_fault(path.parent) is None or isinstance(
        step_folders.manifest_fault(path.parent), str
    )


def read_lock(path):
    with lock.hold(path.parent):
        pass


# By name: the file that is written to, as a key of `wholes`, and what reads it.
def check(folder):
    llama.ModelFiles(folder).shapes()


READERS = {
    "json": ("run/config.json", files.read_json),
    "config": ("run/config.json", lambda path: Workdir(path.parent).config()),
    "facts": ("run/facts.json", lambda path: Workdir(path.parent).facts()),
    "tokens": ("run/tokens.npz", pipeline.Tokens.load),
    "tokenizer": ("run/tokenizer.json", tokenizer.Tokenizer.load),
    "tokenizer settings": (
        "run/tokenizer_config.json",
        lambda path: tokenizer.Tokenizer.load(path.parent / tokenizer.FILE),
    ),
    "curves": (
        "run/student.jsonl",
        lambda path: metrics.read_curves(path.parent, "student", [0, 1]),
    ),
    "results": ("run/results.csv", results.read_csv),
    "manifest": ("run/manifest.json", read_manifest),
    "lock": ("run/lock.json", read_lock),
    "llama config": ("llama/config.json", lambda path: check(path.parent)),
    "llama tensors": ("llama/model.safetensors", lambda path: llama.read(path.parent)),
    "llama index": (
        "llama/model.safetensors.index.json",
        lambda path: llama.ModelFiles(path.parent).shapes(),
    ),
    "llama tokenizer": (
        "llama/tokenizer.json",
        lambda path: tokenizer.read_folder(path.parent, vocab_size=llama_folders.V),
    ),
    "teacher source": (
        "llama/config.json",
        lambda path: teacher_sources.find(path.parent).checked_sizes(),
    ),
    "prompts": ("run/prompts.jsonl", prompts._read),
    "gguf": ("gguf/model.gguf", lambda path: teacher_sources.find(path).checked_sizes()),
}


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """Every file as it should be."""
    folder = tmp_path_factory.mktemp("wholes")
    run, far = folder / "run", folder / "llama"
    far.mkdir()
    bpe = data.Tokenizer.train(sentences(20), 300)
    Workdir(run).initialize_or_resume(smoke.get_config().to_dict())
    bpe.save(run / "tokenizer.json")
    texts = documents.read([("a", b"some text")]).texts
    corpus = data.Documents.of(dict.fromkeys(documents.SPLITS, texts), [])
    data.tokenize(corpus, bpe)["train"].save(run / "tokens.npz")
    with trackers.open_trackers(
        trackers.TrackedStage(run, "student", ["kl"], [0, 1]), [metrics.Curves]
    ) as write:
        write(1, {"loss": np.ones((1, 2))}, 1.0)
    results.write_csv(reporting_cases.frame(losses=("ce", "tv"), seeds=1), run / "results.csv")
    (run / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    (run / "lock.json").write_text('{"host": "elsewhere", "process": 12}')
    step_folders.write_manifest(run)
    llama_folders.write(far, llama_folders.make_decoder())
    (far / "model.safetensors.index.json").write_text(
        json.dumps(
            {
                "weight_map": dict.fromkeys(
                    safetensors_io.Tensors(far, ignore="?").shapes, "model.safetensors"
                )
            }
        )
    )
    (folder / "gguf").mkdir()
    gguf_files.write(folder / "gguf" / "model.gguf", "llama", *gguf_files.llama_parts())
    return folder


@BRIEF_AND_LONG
@pytest.mark.parametrize("name", READERS)
def test_readers(wholes, name, cases, options):
    place, read = READERS[name]
    path = wholes / place
    whole = path.read_bytes()

    def check(content):
        path.write_bytes(content)
        taken_or_refused(lambda: read(path), path.parent)

    try:
        fuzz(check, changed(whole), cases["readers"], options)
    finally:
        path.write_bytes(whole)


def test_what_a_run_leaves_out_of_its_data_is_said_and_kept(tmp_path, capsys):
    texts = runs.write_texts(tmp_path / "texts")
    (texts / "<b>.txt").write_bytes(b"\xff")
    (texts / "none.txt").write_bytes(b"")
    config = smoke.get_config()
    config.data.files = f"{texts}/*.txt"
    (tmp_path / "run" / "data" / "incomplete.ABCDEF_1.0.0" / "left").mkdir(parents=True)
    Workdir(tmp_path / "run").initialize_or_resume(config.to_dict())
    run_data.prepare(RunSpec.from_config(config.to_dict()), Workdir(tmp_path / "run"))
    assert os.listdir(tmp_path / "run" / "data") == []
    message = "1 no UTF-8 text (<b>.txt); 1 empty (none.txt)"
    assert f"left out of the data: {message}" in capsys.readouterr().err
    assert Workdir(tmp_path / "run").facts()["left out of the data"] == message


def test_lines_for_people_hold_nothing_that_terminals_obey(capsys):
    progress.log("\x1b[2J\ud800 [red]é\u202e")
    assert capsys.readouterr().err == "\\x1b[2J\\ud800 [red]é\\u202e\n"


def test_an_error_over_a_megabyte_is_cut(capsys):
    with pytest.raises(SystemExit):
        cli._fail("a" * 10**6)
    assert len(capsys.readouterr().err) < 5000


class Bomb:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("exploded"),)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "tokens.npz", ids=np.array([Bomb()], object), offsets=np.zeros(1, np.int64))
    with pytest.raises(ValueError, match=r"can't read tokens from .*tokens\.npz"):
        pipeline.Tokens.load(tmp_path / "tokens.npz")
    assert not (tmp_path / "exploded").exists()
