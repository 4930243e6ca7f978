"""The binary that decodes: what it prints, where the tokens come from, and what it refuses."""

import json

import numpy as np
import pytest

from jaxdiv.data.tokenizer import Tokenizer
from jaxdiv.training.workdir import Workdir
from tests import commands, runs

SHORT = ["--max_tokens=12", "--prompt=draft target token"]
JSON = ["--output=jsonl", *SHORT]
GOOD = {
    "samples": ["--loss=kl", "--num_samples=2", "--sampling_seed=5", "--top_k=500", "--top_p=0.9", *JSON],
    "tree": ["--loss=tv", "--seed=1", "--tree=0,1,00", "--temperature=0", *JSON],
    "lookup": ["--draft=lookup", "--temperature=0", *JSON],
    "plain": ["--baseline", "--loss=klx", "--gamma=99", "--temperature=0", *JSON],
    "typical": ["--loss=ce", "--rule=typical", "--eta=0", *SHORT],
    "texts": ["--baseline", "--num_samples=2", "--max_tokens=3"],
}
REFUSED = {
    "no loss": ([], ["give the student's loss, such as --loss=ce", "ce, kl, tv"]),
    "unknown loss": (["--loss=klx"], ["has no students of loss 'klx'; it has ce, kl, tv"]),
    "unknown seed": (["--loss=kl", "--seed=7"], ["has no seed 7; it has 0, 1"]),
    "empty prompt": (["--loss=kl", "--prompt="], ["--prompt: the prompt must be text that is not empty"]),
    "two prompts": (["--loss=kl", "--prompt=a", "--prompts_file=b"], ["give --prompt or --prompts_file, not both"]),
    "no file": (["--loss=kl", "--prompts_file=/nowhere.txt"], ["/nowhere.txt"]),
    "eta": (["--loss=kl", "--eta=1.5"], ["`eta` must be in [0, 1], got 1.5"]),
    "eta of lookup": (["--draft=lookup", "--eta=0.5"], ["`eta`", "`lookup` has none"]),
    "gamma": (["--loss=kl", "--gamma=0"], ["`gamma` must be in 1..64, got 0"]),
    "rule": (["--loss=kl", "--rule=greedy"], ["--rule=greedy", "exact_match"]),
    "deep tree": (["--loss=kl", "--tree=0,00,000", "--gamma=2"], ["3 tokens deep", "gamma=3 fits"]),
    "tree and eta": (["--loss=kl", "--tree=0,1", "--eta=0.5"], ["with a tree it must be 0"]),
    "no tree": (["--loss=kl", "--tree=0,x"], ["a tree is paths of digits", "'x'"]),
    "no tokens": (["--loss=kl", "--max_tokens=0"], ["`max_tokens` must be at least 1, got 0"]),
    "absurd": (["--loss=kl", f"--max_tokens={10**20}"], ["more than 1,048,576 together"]),
    "temperature": (["--loss=kl", "--temperature=-1"], ["`temperature` must be finite and at least 0, got -1"]),
    "top_p": (["--loss=kl", "--top_p=0"], ["`top_p` must be in (0, 1]"]),
    "top_k": (["--loss=kl", "--top_k=0"], ["`top_k` must be at least 1"]),
    "samples": (["--loss=kl", "--num_samples=0"], ["--num_samples=0"]),
    "sampling seed": (["--loss=kl", "--sampling_seed=-1"], ["`seeds` must be 1 whole numbers below 2**32"]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    texts = runs.write_texts(tmp_path_factory.mktemp("data") / "texts")
    return commands.untrained(tmp_path_factory.mktemp("decode") / "run", texts)


@pytest.fixture(scope="module")
def ended(folder):
    """Every command's end."""
    (folder / "bare").mkdir()
    (folder / "bad.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    (folder / "blank.txt").write_text("\n \n")
    (folder / "three.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n\n" for p in ("a\nb", "token", "é")))
    (folder / "two.txt").write_text("draft target\ntoken accept\n")
    files = {name: f"--prompts_file={folder / name}" for name in ("bad.jsonl", "blank.txt", "three.jsonl", "two.txt")}
    here = f"--workdir={folder}"
    asked = {name: [here, *given] for name, given in GOOD.items()}
    asked |= {("refused", name): [here, *given] for name, (given, _) in REFUSED.items()}
    asked |= {name: [here, "--max_tokens=4", "--output=jsonl", "--baseline", flag] for name, flag in files.items()}
    asked |= {"no folder": ["--loss=kl"], "no run": ["--workdir=/nowhere"], "bare": [f"--workdir={folder / 'bare'}"]}
    return dict(zip(asked, commands.many("decode", list(asked.values())), strict=True))


def lines(done):
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_one_line(ended, name):
    runs.check_refusal(ended["refused", name], *REFUSED[name][1])


def test_files_and_folders_that_are_none_are_named(ended):
    runs.check_refusal(ended["bad.jsonl"], "line 2 of", "must be an object with a prompt")
    runs.check_refusal(ended["blank.txt"], "blank.txt holds no prompt")
    runs.check_refusal(ended["no folder"], "--workdir=runs/quickstart")
    runs.check_refusal(ended["no run"], "/nowhere is not the folder of a run")
    runs.check_refusal(ended["bare"], "bare is not the folder of a run")


def test_a_line_says_what_was_decoded(ended, folder):
    line, other = lines(ended["samples"])
    assert line["prompt"] == "draft target token"
    assert line["lossless"]
    assert (line["draft"], line["loss"], line["seed"], line["rule"]) == ("student", "kl", 0, "sampling")
    assert line["text"] == Tokenizer.load(Workdir(folder).tokenizer).decode(line["tokens"])
    assert 0 < len(line["tokens"]) <= 12
    # Each call gives at least one token, and one that is no draft unless the last round was cut.
    assert line["target_calls"] + line["accepted"] - len(line["tokens"]) in (0, 1)
    assert (line["sampling_seed"], other["sampling_seed"]) == (5, 6)
    assert line["tokens"] != other["tokens"]


def test_greedy_text_is_the_same_whatever_drafts(ended):
    tree, lookup, plain = (lines(ended[name])[0] for name in ("tree", "lookup", "plain"))
    assert tree["tokens"] == lookup["tokens"] == plain["tokens"]
    assert plain["target_calls"] == len(plain["tokens"])
    assert (plain["accepted"], plain["draft"], plain["loss"], plain["rule"]) == (0, None, None, None)
    assert (tree["loss"], tree["seed"], lookup["draft"], lookup["loss"]) == ("tv", 1, "lookup", None)


def test_prompts_are_read_from_files(ended):
    assert [line["prompt"] for line in lines(ended["three.jsonl"])] == ["a\nb", "token", "é"]
    assert [line["prompt"] for line in lines(ended["two.txt"])] == ["draft target", "token accept"]


def test_text_is_printed_with_its_statistics_and_without_colour(ended):
    done = ended["typical"]
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert done.stdout.startswith("draft target token")
    for told in ("tokens a call", "drafted and accepted", "in place of a refused draft", "The draft ran", "compiling"):
        assert told in done.stdout
    assert "Drafted by student of ce, seed 0: a chain of 4, eta 0; rule typical" in done.stdout
    assert "typical` is lossy" in done.stdout
    texts = ended["texts"].stdout
    assert texts.count("--- sampling seed") == 2
    assert "without drafts" in texts
    assert "lossy" not in texts


def test_pieces_are_the_text_whatever_the_tokens_split():
    from experiments.transcript import Pieces

    bpe = Tokenizer.train(["naïve"], 257)  # every token is a byte
    tokens = bpe.encode("naïve 漢字 \N{REPLACEMENT CHARACTER}!")
    pieces = Pieces(bpe)
    made = [pieces.add(token) for token in tokens]
    assert made[2:4] == ["", "ï"]
    assert "".join(made) + pieces.rest() == bpe.decode(tokens)
    cut = Pieces(bpe)
    assert "".join(cut.add(token) for token in tokens[:3]) + cut.rest() == bpe.decode(tokens[:3])


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colours_end_where_they_are_not_wanted(no_color, coloured, monkeypatch, capsys):
    from experiments.transcript import Transcript

    for name, value in (("NO_COLOR", no_color), ("FORCE_COLOR", "1"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    bpe = Tokenizer.train(["a text"], 257)
    page = Transcript(bpe)
    tokens = np.array(bpe.encode("a[b]\x1b[0m"))
    page.begin("p")
    page.stream(tokens[None], np.array([0]), np.array([len(tokens)]), np.ones((1, len(tokens)), np.int8))
    page.end()
    printed = capsys.readouterr().out
    assert ("\x1b[32m" in printed) == coloured
    if not coloured:
        assert printed == "pa[b]␛[0m\n"
