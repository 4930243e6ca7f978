"""Where documents come from: the standard library, TFDS and files."""

import os
import pathlib
import sysconfig

import pytest

from jaxdiv import data
from jaxdiv.data import documents as documents_module
from jaxdiv.data import python_stdlib
from jaxdiv.data.documents import SPLITS
from tests import runs
from tests.fixtures_data import sentences, write_tfds


def open_documents(**changes):
    return data.open_documents(
        **({"source": "", "feature": "text", "files": "", "directory": ""} | changes)
    )


def all_texts(documents):
    return [text for split in SPLITS for text in getattr(documents, split)]


@pytest.fixture(scope="module")
def stdlib_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stdlib")


@pytest.fixture(scope="module")
def stdlib(stdlib_folder):
    return open_documents(source="python_stdlib", directory=str(stdlib_folder))


def library(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def test_stdlib_is_whole_and_splits_share_nothing(stdlib):
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    hidden = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    sources = [
        path for path in root.rglob("*.py") if not hidden & set(path.relative_to(root).parts)
    ]
    texts = [path.read_bytes() for path in sources]
    assert sorted(all_texts(stdlib)) == sorted(text.decode() for text in texts if text.strip())
    assert stdlib.counts == {
        "documents": sum(bool(text.strip()) for text in texts),
        "bytes": sum(len(text) for text in texts if text.strip()),
        "unreadable": 0,
        "empty": sum(not text.strip() for text in texts),
    }
    shares = [len(getattr(stdlib, split)) / stdlib.counts["documents"] for split in SPLITS]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.05)


def test_stdlib_is_prepared_once(stdlib, stdlib_folder):
    written = {path: path.stat().st_mtime_ns for path in stdlib_folder.rglob("*")}
    assert open_documents(source="python_stdlib", directory=str(stdlib_folder)) == stdlib
    assert {path: path.stat().st_mtime_ns for path in stdlib_folder.rglob("*")} == written


def test_stdlib_of_another_python_is_not_reused(tmp_path):
    files = {f"m{i}.py": f"x = {i}\n" for i in range(30)}
    one = python_stdlib.open_stdlib(
        directory=str(tmp_path / "d"), root=library(tmp_path / "a", files)
    )
    files["m7.py"] = "x = 'changed'\n"
    other = python_stdlib.open_stdlib(
        directory=str(tmp_path / "d"), root=library(tmp_path / "b", files)
    )
    assert "x = 'changed'\n" in all_texts(other)
    assert one.fingerprint != other.fingerprint


def test_splits_depend_on_the_relative_path_alone(tmp_path):
    files = {f"p/m{i}.py": f"x = {i}\n" for i in range(40)}
    here = python_stdlib.open_stdlib(
        directory=str(tmp_path / "1"), root=library(tmp_path / "a", files)
    )
    there = python_stdlib.open_stdlib(
        directory=str(tmp_path / "2"), root=library(tmp_path / "deep" / "b", files)
    )
    assert here == there


def test_unreadable_and_empty_sources_are_counted(tmp_path):
    files = {f"m{i}.py": f"x = {i}\n" for i in range(5)}
    root = library(
        tmp_path / "a",
        files | {"latin.py": b"# caf\xe9", "blank.py": " \n", "test/skipped.py": "x"},
    )
    (root / "dangling.py").symlink_to(root / "nowhere.py")
    documents = python_stdlib.open_stdlib(directory=str(tmp_path / "d"), root=root)
    assert documents.counts == {"documents": 5, "bytes": 30, "unreadable": 2, "empty": 1}


def test_a_damaged_copy_is_refused(tmp_path):
    files = {f"m{i}.py": f"x = {i}\n" for i in range(5)}
    root = library(tmp_path / "a", files)
    python_stdlib.open_stdlib(directory=str(tmp_path / "d"), root=root)
    shards = sorted((tmp_path / "d").glob("**/*.array_record*"))
    other = python_stdlib.open_stdlib(
        directory=str(tmp_path / "e"), root=library(tmp_path / "b", dict.fromkeys(files, "y = 1\n"))
    )
    assert other.counts["documents"] == 5
    for shard, source in zip(
        shards, sorted((tmp_path / "e").glob("**/*.array_record*")), strict=True
    ):
        shard.write_bytes(source.read_bytes())
    with pytest.raises(ValueError, match="damaged; delete that folder"):
        python_stdlib.open_stdlib(directory=str(tmp_path / "d"), root=root)


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied"])
def test_damaged_records_are_refused(tmp_path, damage):
    texts = sentences(20)
    write_tfds(tmp_path / "tfds", {"train": texts})
    files = {f"m{i}.py": f"x = {i}\n" for i in range(5)}
    root = library(tmp_path / "a", files)
    python_stdlib.open_stdlib(directory=str(tmp_path / "stdlib"), root=root)
    for shard in tmp_path.glob("*/**/*.array_record*"):
        content = bytearray(shard.read_bytes())
        if damage == "flipped":
            content[len(content) // 2] ^= 1
        shard.write_bytes({"cut": content[:-1], "flipped": content, "emptied": b""}[damage])
    with pytest.raises(ValueError, match=rf"`tiny_text` in {tmp_path}/tfds.* can't be read"):
        open_documents(source="tiny_text", directory=str(tmp_path / "tfds"))
    with pytest.raises(ValueError, match="damaged; delete that folder"):
        python_stdlib.open_stdlib(directory=str(tmp_path / "stdlib"), root=root)


def test_tfds_by_name_and_feature_keeps_its_own_splits(tmp_path):
    texts = sentences(20)
    splits = {"train": texts[:14], "validation": texts[14:17], "test": texts[17:]}
    write_tfds(tmp_path, splits, feature="article")
    documents = open_documents(source="tiny_text", feature="article", directory=str(tmp_path))
    for split, expected in splits.items():
        assert sorted(getattr(documents, split)) == sorted(expected)


def test_tfds_cuts_missing_splits_from_train(tmp_path):
    texts = sentences(300)
    write_tfds(tmp_path, {"train": [*texts, "", b"\xff\xfe"], "test": ["the end"]})
    documents = open_documents(source="tiny_text", directory=str(tmp_path))
    assert documents.test == ("the end",)
    assert sorted(documents.train + documents.validation) == sorted(texts)
    assert len(documents.validation) == pytest.approx(30, abs=16)
    assert documents.counts == {
        "documents": 301,
        "bytes": sum(map(len, texts)) + len("the end"),
        "unreadable": 1,
        "empty": 1,
    }


def test_tfds_never_puts_one_text_in_two_cut_splits(tmp_path):
    write_tfds(tmp_path, {"train": sentences(100) * 2})
    documents = open_documents(source="tiny_text", directory=str(tmp_path))
    splits = [set(getattr(documents, split)) for split in SPLITS]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 100
    assert documents.counts["documents"] == 200


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature": "title"}, r"no text feature `title`; it has text$"),
        ({"feature": "number"}, r"no text feature `number`; it has text$"),
        (
            {"source": "tiny_txt"},
            r"must be python_stdlib or a TFDS data set prepared in .*, got `tiny_txt`",
        ),
        ({"source": "imdb_review"}, r"did you mean `imdb_reviews`\?"),
        (
            {"source": "imdb_reviews"},
            r"`imdb_reviews` is not prepared in .*file_format='array_record'",
        ),
        ({"source": "not a name"}, r"got `not a name`"),
        ({"files": "/nowhere/**/*.txt"}, r"`files` matches no file, got '/nowhere/\*\*/\*.txt'"),
    ],
)
def test_refusals_are_one_line(tmp_path, changes, message):
    write_tfds(tmp_path, {"train": sentences(5)})
    with pytest.raises(ValueError, match=message) as caught:
        open_documents(**{"source": "tiny_text", "directory": str(tmp_path)} | changes)
    assert "\n" not in str(caught.value)


def test_tfds_in_another_format_is_refused(tmp_path):
    write_tfds(tmp_path, {"train": sentences(5)}, file_format="parquet")
    with pytest.raises(ValueError, match="must be in array_record, is in parquet"):
        open_documents(source="tiny_text", directory=str(tmp_path))


def test_tfds_without_train_is_refused(tmp_path):
    write_tfds(tmp_path, {"test": sentences(5)})
    with pytest.raises(ValueError, match="no text in a split `train`; it has test"):
        open_documents(source="tiny_text", directory=str(tmp_path))


def test_stdlib_needs_a_writable_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="can't prepare python_stdlib in"):
        open_documents(source="python_stdlib", directory=str(tmp_path / "file" / "d"))


def test_files_by_glob(tmp_path):
    texts = {f"a/{i}/t{i}.txt": text for i, text in enumerate(sentences(50))}
    library(tmp_path / "x", texts | {"a/skip.md": "no", "a/blank.txt": "", "a/latin.txt": b"\xe9"})
    library(tmp_path / "elsewhere", texts)
    documents = open_documents(files=str(tmp_path / "x" / "**" / "*.txt"))
    assert sorted(all_texts(documents)) == sorted(texts.values())
    assert (documents.counts["unreadable"], documents.counts["empty"]) == (1, 1)
    moved = open_documents(files=str(tmp_path / "elsewhere" / "**" / "*.txt"))
    assert moved.fingerprint == documents.fingerprint


def test_what_is_no_text_is_counted_and_named(tmp_path):
    texts = {f"t{i}.txt": text for i, text in enumerate(sentences(20))}
    root = library(
        tmp_path,
        texts | {"zeros.txt": bytes(100), "utf16.txt": "é".encode("utf-16"), "blank.txt": "\n"},
    )
    (root / "nowhere.txt").symlink_to(root / "none")
    (root / "folder.txt").mkdir()
    os.mkfifo(root / "pipe.txt")
    (root / os.fsdecode(b"\xff.txt")).write_bytes(b"\xff")
    documents = open_documents(files=str(root / "*.txt"))
    assert sorted(all_texts(documents)) == sorted(texts.values())
    assert (documents.counts["unreadable"], documents.counts["empty"]) == (5, 1)
    named = "nowhere.txt, pipe.txt, utf16.txt, zeros.txt, \udcff.txt"
    assert documents.left_out == f"5 no UTF-8 text ({named}); 1 empty (blank.txt)"
    library(tmp_path, {f"blank{i}.txt": "" for i in range(9)})
    assert documents.counts["documents"] == 20
    assert open_documents(files=str(root / "*.txt")).left_out.endswith(
        "blank2.txt, blank3.txt, 5 more)"
    )


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    root = library(tmp_path, {f"t{i}.txt": text for i, text in enumerate(sentences(5))})
    os.truncate(root / "t3.txt", 100 * 2**20)
    with pytest.raises(
        ValueError,
        match=r"document t3.txt has 104,857,600 bytes, of at most 4,194,304; cut it into",
    ):
        open_documents(files=str(root / "*.txt"))


def test_fingerprint_sees_name_text_and_split():
    text = documents_module.Text("a", "bc")
    variants = [
        {"train": [text]},
        {"test": [text]},
        {"train": [documents_module.Text("b", "bc")]},
        {"train": [documents_module.Text("a", "bd")]},
        {"train": [documents_module.Text("ab", "c")]},
        {"train": [text, text]},
    ]
    assert len({documents_module.fingerprint(variant) for variant in variants}) == len(variants)


@pytest.mark.parametrize("count", [3, 4, 5, 8])
def test_a_small_corpus_fills_every_split(count):
    splits = documents_module.split_by_hash(
        [documents_module.Text(f"{i}.txt", "x") for i in range(count)]
    )
    assert all(splits[split] for split in SPLITS)
    assert sum(map(len, splits.values())) == count


def test_a_corpus_of_two_documents_is_refused():
    with pytest.raises(ValueError, match="needs 3 documents for train, validation, test, got 2"):
        documents_module.split_by_hash(
            [documents_module.Text("a", "x"), documents_module.Text("b", "x")]
        )


def test_nothing_is_printed_and_tensorflow_stays_out(tmp_path):
    code = (
        "import sys; from jaxdiv import data; data.open_documents("
        f"source='python_stdlib', feature='', files='', directory={str(tmp_path)!r}); "
        "sys.exit('tensorflow' in sys.modules)"
    )
    done = runs.end(runs.start_python("-W", "error", "-c", code))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
