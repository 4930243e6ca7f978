"""Sources of documents: the standard library, TFDS and files."""

import os
import pathlib
import sysconfig

import pytest

from jaxdiv import data
from jaxdiv.data import sources
from jaxdiv.data.documents import SPLITS, Text, fingerprint, split_by_hash
from tests import runs
from tests.fixtures_data import sentences, write_tfds


def open_documents(**changes):
    arguments = {"source": "", "feature": "text", "files": "", "directory": ""}
    return data.open_documents(**arguments | changes)


def open_tiny(folder, splits, feature="text"):
    write_tfds(folder, splits, feature=feature)
    return open_documents(source="tiny_text", feature=feature, directory=str(folder))


def all_texts(documents):
    return [text for split in SPLITS for text in getattr(documents, split)]


def library(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def open_library(root, files, directory):
    return sources.open_stdlib(directory=str(directory), root=library(root, files))


def shards(folder):
    return sorted(folder.glob("**/*.array_record*"))


def modules(count):
    return {f"p/m{i}.py": f"x = {i}\n" for i in range(count)}


def test_stdlib_is_whole_and_prepared_once(tmp_path):
    stdlib = open_documents(source="python_stdlib", directory=str(tmp_path))
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    hidden = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    paths = [p for p in root.rglob("*.py") if not hidden & set(p.relative_to(root).parts)]
    texts = [path.read_bytes() for path in paths]
    full = [text for text in texts if text.strip()]
    assert sorted(all_texts(stdlib)) == sorted(text.decode() for text in full)
    assert stdlib.counts == {
        "documents": len(full),
        "bytes": sum(map(len, full)),
        "unreadable": 0,
        "empty": len(texts) - len(full),
    }
    shares = [len(getattr(stdlib, split)) / len(full) for split in SPLITS]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.05)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert open_documents(source="python_stdlib", directory=str(tmp_path)) == stdlib
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times


def test_stdlib_splits_by_relative_path_and_knows_its_python(tmp_path):
    folder = tmp_path / "d"
    one = open_library(tmp_path / "a", modules(30), folder)
    assert open_library(tmp_path / "deep" / "b", modules(30), tmp_path / "e") == one
    other = open_library(tmp_path / "c", modules(30) | {"p/m7.py": "x = 'changed'\n"}, folder)
    assert "x = 'changed'\n" in all_texts(other)
    assert one.fingerprint != other.fingerprint
    # A copy of another library is damage.
    copies = [path for path in shards(folder) if other.fingerprint in str(path)]
    for shard, source in zip(shards(tmp_path / "e"), copies, strict=True):
        shard.write_bytes(source.read_bytes())
    with pytest.raises(ValueError, match="damaged; delete that folder"):
        open_library(tmp_path / "a", {}, tmp_path / "e")


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied"])
def test_damaged_records_are_refused(tmp_path, damage):
    write_tfds(tmp_path / "tfds", {"train": sentences(20)})
    open_library(tmp_path / "a", modules(5), tmp_path / "stdlib")
    for shard in shards(tmp_path):
        content = bytearray(shard.read_bytes())
        if damage == "flipped":
            content[len(content) // 2] ^= 1
        shard.write_bytes({"cut": content[:-1], "flipped": content, "emptied": b""}[damage])
    with pytest.raises(ValueError, match=rf"`tiny_text` in {tmp_path}/tfds.* can't be read"):
        open_documents(source="tiny_text", directory=str(tmp_path / "tfds"))
    with pytest.raises(ValueError, match="damaged; delete that folder"):
        open_library(tmp_path / "a", modules(5), tmp_path / "stdlib")


def test_tfds_by_name_and_feature_keeps_its_splits(tmp_path):
    texts = sentences(20)
    splits = {"train": texts[:14], "validation": texts[14:17], "test": texts[17:]}
    documents = open_tiny(tmp_path, splits, feature="article")
    for split, expected in splits.items():
        assert sorted(getattr(documents, split)) == sorted(expected)


def test_tfds_cuts_missing_splits_from_train(tmp_path):
    texts = sentences(300)
    documents = open_tiny(tmp_path / "a", {"train": [*texts, "", b"\xff"], "test": ["the end"]})
    assert documents.test == ("the end",)
    assert sorted(documents.train + documents.validation) == sorted(texts)
    assert len(documents.validation) == pytest.approx(30, abs=16)
    size = sum(map(len, texts)) + len("the end")
    assert documents.counts == {"documents": 301, "bytes": size, "unreadable": 1, "empty": 1}
    # Equal texts share a split.
    twice = open_tiny(tmp_path / "b", {"train": sentences(100) * 2})
    splits = [set(getattr(twice, split)) for split in SPLITS]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 100
    assert twice.counts["documents"] == 200


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_tfds(folder, {"train": sentences(5)})
    write_tfds(folder, {"train": sentences(5)}, name="parquet_text")
    for path in folder.glob("parquet_text/**/dataset_info.json"):
        path.write_text(path.read_text().replace('"array_record"', '"parquet"'))
    write_tfds(folder, {"test": sentences(5)}, name="test_text")
    (folder / "file").write_text("")
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature": "title"}, r"no text feature `title`; it has text$"),
        ({"feature": "number"}, r"no text feature `number`; it has text$"),
        ({"source": "tiny_txt"}, r"python_stdlib or a TFDS data set .* in .*, got `tiny_txt`"),
        ({"source": "imdb_review"}, r"did you mean `imdb_reviews`\?"),
        ({"source": "imdb_reviews"}, r"is not prepared in .*file_format='array_record'"),
        ({"source": "not a name"}, r"got `not a name`"),
        ({"source": "parquet_text"}, "must be in array_record, is in parquet"),
        ({"source": "test_text"}, "no text in a split `train`; it has test"),
        ({"source": "python_stdlib", "directory": "file/d"}, "can't prepare python_stdlib in"),
        ({"files": "/nowhere/**/*.txt"}, r"`files` matches no file, got '/nowhere/\*\*/\*.txt'"),
    ],
)
def test_refusals_are_one_line(tiny_folder, changes, message):
    arguments = {"source": "tiny_text"} | changes
    arguments["directory"] = str(tiny_folder / changes.get("directory", ""))
    with pytest.raises(ValueError, match=message) as error:
        open_documents(**arguments)
    assert "\n" not in str(error.value)


def test_files_by_glob(tmp_path):
    texts = {f"a/{i}/t{i}.txt": text for i, text in enumerate(sentences(50))}
    no_texts = {"zeros.txt": bytes(100), "utf16.txt": "é".encode("utf-16"), "blank.txt": "\n"}
    root = library(tmp_path / "x", texts | no_texts | {"a/skip.md": "no"})
    (root / "nowhere.txt").symlink_to(root / "none")
    (root / "folder.txt").mkdir()
    os.mkfifo(root / "pipe.txt")
    (root / os.fsdecode(b"\xff.txt")).write_bytes(b"\xff")
    documents = open_documents(files=str(root / "**" / "*.txt"))
    assert sorted(all_texts(documents)) == sorted(texts.values())
    size = sum(map(len, texts.values()))
    assert documents.counts == {"documents": 50, "bytes": size, "unreadable": 5, "empty": 1}
    names = "nowhere.txt, pipe.txt, utf16.txt, zeros.txt, \udcff.txt"
    assert documents.left_out == f"5 no UTF-8 text ({names}); 1 empty (blank.txt)"
    library(tmp_path / "elsewhere", texts | {f"blank{i}.txt": "" for i in range(9)})
    moved = open_documents(files=str(tmp_path / "elsewhere" / "**" / "*.txt"))
    assert moved.fingerprint == documents.fingerprint
    assert moved.left_out.endswith("blank3.txt, blank4.txt, 4 more)")


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    root = library(tmp_path, {f"t{i}.txt": text for i, text in enumerate(sentences(5))})
    os.truncate(root / "t3.txt", 100 * 2**20)
    message = r"document t3.txt has 104,857,600 bytes, of at most 4,194,304; cut it into"
    with pytest.raises(ValueError, match=message):
        open_documents(files=str(root / "*.txt"))


def test_fingerprint_sees_name_text_and_split():
    text = Text("a", "bc")
    variants = [
        {"train": [text]},
        {"test": [text]},
        {"train": [Text("b", "bc")]},
        {"train": [Text("a", "bd")]},
        {"train": [Text("ab", "c")]},
        {"train": [text, text]},
    ]
    assert len({fingerprint(variant) for variant in variants}) == len(variants)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8])
def test_a_small_corpus_fills_every_split_or_is_refused(count):
    texts = [Text(f"{i}.txt", "x") for i in range(count)]
    if count < 3:
        message = "needs 3 documents for train, validation, test, got 2"
        with pytest.raises(ValueError, match=message):
            split_by_hash(texts)
        return
    splits = split_by_hash(texts)
    assert all(splits[split] for split in SPLITS)
    assert sum(map(len, splits.values())) == count


def test_nothing_is_printed_and_tensorflow_stays_out(tmp_path):
    code = (
        "import sys; from jaxdiv import data; data.open_documents("
        f"source='python_stdlib', feature='', files='', directory={str(tmp_path)!r}); "
        "sys.exit('tensorflow' in sys.modules)"
    )
    process = runs.end(runs.start_python("-W", "error", "-c", code))
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
