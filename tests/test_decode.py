"""The program that decodes: its output, the sources of tokens, and the input that it refuses."""

import functools
import json
import re
import shutil
import signal

import numpy as np
import pytest
from flax import nnx

from experiments.common.decoded_acceptance import with_decoding
from experiments.common.transcript import Pieces, Transcript
from jaxdiv import speculative
from jaxdiv.data.tokenizer import Tokenizer
from jaxdiv.evaluation.measurement import Measurement
from jaxdiv.models import Decoder, DecoderOptions, DecoderStudent, KangarooAdapter
from jaxdiv.reporting import results
from jaxdiv.runs.workdir import Workdir
from tests import commands, runs

PROMPT = "draft target token"
SHORT = ["--max_tokens=12", f"--prompt={PROMPT}"]
JSON = ["--output=jsonl", *SHORT]
SAMPLES = "--loss=kl --num_samples=2 --sampling_seed=5 --top_k=500 --top_p=0.9"
GOOD = {
    "samples": [*SAMPLES.split(), *JSON],
    "tree": ["--loss=tv", "--seed=1", "--tree=0,1,00", "--temperature=0", *JSON],
    "lookup": ["--draft=lookup", "--rule=typical", "--time_split", *SHORT],
}
# By flags: what the one line on standard error says.
REFUSED = {
    "": ["give the student's loss, such as --loss=ce", "ce, kl, tv"],
    "--loss=klx": ["has no students of loss 'klx'; it has ce, kl, tv"],
    "--loss=kl --seed=7": ["has no seed 7; it has 0, 1"],
    "--loss=kl --prompt=": ["--prompt: the prompt must be text that is not empty"],
    "--loss=kl --prompt=a --prompts_file=b": ["give --prompt or --prompts_file, not both"],
    "--loss=kl --prompts_file=/nowhere.txt": ["--prompts_file=/nowhere.txt is no file"],
    "--draft=lookup --loss=kl": ["--loss and --seed are of a student"],
    "--loss=kl --chat": ["the tokenizer has no chat template"],
    "--loss=kl --eta=1.5": ["`eta` must be in [0, 1], got 1.5"],
    "--draft=lookup --eta=0.5": ["`eta`", "`lookup` has none"],
    "--loss=kl --gamma=0": ["`gamma` must be at least 1, got 0"],
    "--loss=kl --gamma=65": ["`gamma` must be at most 64, got 65"],
    "--loss=kl --rule=greedy": ["--rule=greedy", "exact_match"],
    "--loss=kl --tree=0,00,000 --gamma=2": ["3 tokens deep", "gamma=3 fits"],
    "--loss=kl --tree=0,1 --eta=0.5": ["with a tree it must be 0"],
    "--loss=kl --tree=0,x": ["a tree is paths of digits", "'x'"],
    "--loss=kl --max_tokens=0": ["`max_tokens` must be at least 1, got 0"],
    f"--loss=kl --max_tokens={10**20}": ["more than 1,048,576 together"],
    "--loss=kl --temperature=-1": ["`temperature` must be finite and at least 0, got -1"],
    "--loss=kl --top_p=0": ["`top_p` must be in (0, 1]"],
    "--loss=kl --top_k=0": ["`top_k` must be at least 1"],
    "--loss=kl --num_samples=0": ["--num_samples=0"],
    "--loss=kl --sampling_seed=-1": ["`seeds` must be 1 whole numbers in 0"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, texts):
    return commands.untrained(tmp_path_factory.mktemp("decode") / "run", texts)


@pytest.fixture(scope="module")
def ended(folder):
    """The end of every command, by its name or flags; all run in one process."""
    (folder / "bare").mkdir()
    (folder / "bad.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    (folder / "blank.txt").write_text("\n \n")
    # With a byte-order mark, as some editors write one.
    lines = [json.dumps({"prompt": text}) + "\n\n" for text in ("a\nb", "é", PROMPT)]
    (folder / "three.jsonl").write_text("\ufeff" + "".join(lines), encoding="utf-8")
    (folder / "two.txt").write_text("draft target\ntoken accept\n")
    unfinished, chats = folder / "unfinished", folder / "chats"
    shutil.copytree(folder, unfinished, ignore=shutil.ignore_patterns("students", "unfinished"))
    shutil.copytree(folder, chats, ignore=shutil.ignore_patterns("unfinished", "chats"))
    settings = Workdir(chats).tokenizer.with_name("tokenizer_config.json")
    template = {"chat_template": "draft {{ messages[0].content }} token"}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | template))
    run = f"--workdir={folder}"
    plain = [run, "--baseline", "--loss=klx", "--gamma=99", "--temperature=0", "--max_tokens=12"]
    arguments = {name: [run, *flags] for name, flags in GOOD.items()}
    arguments |= {flags: [run, *flags.split()] for flags in REFUSED}
    for name in ("bad.jsonl", "blank.txt", "two.txt", "three.jsonl"):
        arguments[name] = [*plain, f"--prompts_file={folder / name}"]
    arguments["three.jsonl"].append("--output=jsonl")
    arguments |= {
        "chat": [f"--workdir={chats}", *GOOD["tree"], "--chat", "--prompt=target"],
        "unfinished": [f"--workdir={unfinished}", "--loss=kl"],
        "no folder": ["--loss=kl"],
        "no run": ["--workdir=/nowhere"],
        "bare": [f"--workdir={folder / 'bare'}"],
        "images": [f"--workdir={commands.of_images(folder / 'images')}", "--loss=kl"],
    }
    return dict(zip(arguments, commands.many("decode", list(arguments.values())), strict=True))


def lines(done):
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("flags", REFUSED)
def test_bad_input_is_one_line(ended, flags):
    runs.check_refusal(ended[flags], *REFUSED[flags])


def shapes(make):
    return nnx.eval_shape(lambda: make(nnx.Rngs(0)))


def decoder(vocab_size, rngs):
    sizes = {"depth": 1, "width": 8, "heads": 2, "kv_heads": 1, "mlp_width": 8}
    return Decoder(DecoderOptions(vocab_size=vocab_size, **sizes), rngs=rngs)


def kangaroo(width, exit_layer):
    sizes = {"width": width, "exit_layer": exit_layer, "heads": 2, "kv_heads": 1}
    return shapes(lambda rngs: KangarooAdapter(rngs=rngs, **sizes))


DRAFTS = {
    "none": lambda: None,
    "kangaroo": lambda: kangaroo(8, 1),
    "wide": lambda: kangaroo(16, 1),
    "deep": lambda: kangaroo(8, 2),
    "nine tokens": lambda: shapes(lambda rngs: DecoderStudent(decoder(9, rngs))),
    "no student": lambda: shapes(lambda rngs: decoder(7, rngs)),
    "lookup": lambda: speculative.LOOKUP,
}
FOUR_BILLION = "1 prompts of up to 40,000 tokens need 3,200,000,000 attention"
TOO_MANY = "1 texts of up to 1,048,577 tokens are more than 1,048,576 together"


@pytest.mark.parametrize(
    ("draft", "options", "message"),
    [
        ("wide", {}, "the draft reads layer 1 of width 16, but the target has 1 layers of width 8"),
        ("deep", {}, "the draft reads layer 2 of width 8"),
        ("nine tokens", {}, "the draft has 9 tokens and the target 7"),
        ("no student", {}, "`draft` must be a student, 'lookup' or None, got "),
        ("kangaroo", {"tree": speculative.Tree((0,) * 8)}, "8 tokens wide, but there are only 7"),
        ("kangaroo", {"tree": "0,1"}, "`tree` must be a Tree, as speculative.parse makes"),
        ("kangaroo", {"gamma": 2.5}, "`gamma` must be a whole number, got 2.5"),
        ("kangaroo", {"eta": [0.2]}, r"`eta` must be in \[0, 1\], got \[0.2\]"),
        ("lookup", {"longest": 0}, "`longest` must be a whole number in 1.., got 0"),
        ("none", {"prompts": [[1], [7]]}, r"prompt 1 has tokens 7..7, not in 0..6"),
        ("none", {"prompts": [1, 2]}, "must have at least one token, and be a row of tokens"),
        ("none", {"prompts": [[]]}, "each prompt must have at least one token"),
        ("none", {"prompts": [[1.5]]}, r"prompt 0 must be whole numbers, got \[1.5\]"),
        ("none", {"prompts": [[1] * 40_000]}, FOUR_BILLION),
        ("none", {"seeds": [2**32]}, "`seeds` must be 1 whole numbers"),
        ("none", {"seeds": []}, "`seeds` must be 1 whole numbers"),
        ("none", {"seeds": [0.5]}, "`seeds` must be 1 whole numbers"),
        ("none", {"stop": 7}, "`stop` must be a whole number in 0..6, got 7"),
        ("none", {"stop": [1, 2]}, r"`stop` must be a whole number in 0..6, got \[1, 2\]"),
        ("none", {"max_tokens": 2.7}, "`max_tokens` must be whole numbers, got 2.7"),
        ("none", {"max_tokens": 2**20}, TOO_MANY),
        ("none", {"top_k": [None]}, "`top_k` must be whole numbers, got None"),
        ("none", {"temperature": "1"}, "`temperature` must be numbers, got '1'"),
    ],
)
def test_arguments_that_do_not_fit_the_target_are_refused(draft, options, message):
    target = shapes(lambda rngs: decoder(7, rngs))
    with pytest.raises(ValueError, match=message):
        speculative.prepare(
            target, DRAFTS[draft](), **{"prompts": [[1]], "max_tokens": 2} | options
        )


@pytest.mark.parametrize(
    ("rule", "texts", "message"),
    [
        ("sampling", 215, "215 texts of 4 drafts a round over 1,000,000 tokens need "),
        ("greedy_draft", 430, "probabilities of the target, more than 2,147,483,648; decode fewer"),
    ],
)
def test_distributions_beyond_any_memory_are_refused(rule, texts, message):
    target, draft = shapes(lambda rngs: decoder(10**6, rngs)), kangaroo(8, 1)
    prepare = functools.partial(speculative.prepare, target, draft, max_tokens=2, rule=rule)
    with pytest.raises(ValueError, match=message) as error:
        prepare([[1]] * texts)
    assert "need 2,150,000,000 probabilities of " in str(error.value)
    prepare([[1]] * (texts - 1))


def test_missing_files_and_folders_are_named(ended):
    runs.check_refusal(ended["bad.jsonl"], "line 2 of", "must be an object with a prompt")
    runs.check_refusal(ended["blank.txt"], "blank.txt holds no prompt")
    runs.check_refusal(ended["no folder"], "--workdir=runs/quickstart")
    runs.check_refusal(ended["no run"], "/nowhere is not the folder of a run")
    runs.check_refusal(ended["unfinished"], "no checkpoint in", "students; train first")
    runs.check_refusal(ended["bare"], "bare is not the folder of a run")
    runs.check_refusal(ended["images"], commands.OF_TEXT)


def test_json_lines(ended, folder):
    line, other = lines(ended["samples"])
    expected = {"prompt": PROMPT, "draft": "student", "loss": "kl", "seed": 0, "rule": "sampling"}
    assert {name: line[name] for name in expected} == expected
    assert line["lossless"]
    assert line["text"] == Tokenizer.load(Workdir(folder).tokenizer).decode(line["tokens"])
    assert 0 < len(line["tokens"]) <= 12
    # Each call gives at least one token, and one that is no draft unless the last round was cut.
    assert line["target_calls"] + line["accepted"] - len(line["tokens"]) in (0, 1)
    assert (line["sampling_seed"], other["sampling_seed"]) == (5, 6)
    assert line["tokens"] != other["tokens"]
    drafting = "Drafted by student of kl, seed 0: a chain of 4, eta 0.6; rule sampling"
    assert drafting in " ".join(ended["samples"].stderr.split())


def test_prompts_of_files_and_greedy_texts_with_any_draft(ended):
    (tree,), plain = lines(ended["tree"]), lines(ended["three.jsonl"])
    assert [line["prompt"] for line in plain] == ["a\nb", "é", PROMPT]
    assert [line["sampling_seed"] for line in plain] == [0, 1, 2]  # no two texts share their noise
    assert tree["tokens"] == plain[2]["tokens"] == lines(ended["chat"])[0]["tokens"]
    assert plain[2]["target_calls"] == len(plain[2]["tokens"])
    assert (tree["loss"], tree["seed"]) == ("tv", 1)
    assert "seed 1: the tree 0,1,00; rule" in " ".join(ended["tree"].stderr.split())
    for line in plain:
        assert line["accepted"] == 0
        assert {line[name] for name in ("draft", "loss", "seed", "rule")} == {None}


def test_text_is_printed_with_statistics_and_without_colour(ended):
    done = ended["lookup"]
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert done.stdout.startswith(PROMPT)
    for words in (
        *("tokens a call", "drafted and accepted", "in place of a refused draft", "compiling"),
        *("rounds that drafted", "Drafted by lookup: a chain of 4, eta 0; rule typical"),
        "typical` is lossy",
    ):
        assert words in done.stdout
    timed = r"Timed apart, a round's drafting takes \S+ ms and its verification \S+;"
    assert re.search(timed, done.stdout)
    texts = ended["two.txt"].stdout
    assert [texts.count(f"--- sampling seed {seed}") for seed in (0, 1)] == [1, 1]
    for words in ("draft target", "token accept", "without drafts"):
        assert words in texts
    assert "Timed apart" not in texts
    assert "lossy" not in texts


@pytest.fixture(scope="module")
def measured(folder, tmp_path_factory):
    """The ends of measuring with --decode, and the output folder of the first."""
    output = tmp_path_factory.mktemp("measured")
    images = f"--workdir={commands.of_images(tmp_path_factory.mktemp('images'))}"
    common = [f"--workdir={folder}", f"--output={output}", "--temperatures=1", "--decode"]
    flags = [
        ["--contexts=generated_greedy", "--decode_gamma=3"],
        *(["--contexts=corpus"], ["--decode_gamma=9"], [images]),
        [images, "--nodecode", "--contexts=corpus"],
    ]
    arguments = [[*common, "--rules=greedy_match", *more] for more in flags]
    return output, commands.many("acceptance", arguments)


def test_greedy_decoding_gives_what_the_recursion_says(measured):
    output, (done, *_) = measured
    assert done.returncode == 0, done.stderr
    frame = results.read_csv(output / "results.csv")
    keys = ["loss", "seed"]
    counted = frame[frame["measure"].eq("decoded_tau")].set_index(keys)
    computed = frame[frame["measure"].eq("tau") & frame["gamma"].eq(3)].set_index(keys)
    assert len(counted) == 4 * 3  # three losses and the untrained, two seeds and both
    assert set(counted["temperature"]) == {0.0}
    assert set(counted["gamma"]) == {3.0}
    # A text's chances of acceptance are 0 and 1, so that both are one number.
    np.testing.assert_allclose(counted["value"], computed.loc[counted.index, "value"], rtol=1e-5)
    assert counted["value"].between(1.01, 4).all()
    gained = frame[frame["measure"].eq("speed_up")]
    assert len(gained) == 12
    assert (gained["value"] > 0).all()


def test_decoded_measures_in_table_and_report(measured):
    output, (done, *_) = measured
    title = "Tokens per target call by decoding, γ = 3"
    assert title in done.stdout
    page = (output / "report.html").read_text(encoding="utf-8")
    for words in (title, "decoded_tau", "speed_up", "another sample of text"):
        assert words in page


def test_decoding_without_finite_students_adds_nothing(folder):
    diverged = Measurement({"kl": [], "tv": []}, {})
    names = ["generated_greedy"]
    assert with_decoding(Workdir(folder), diverged, names=names, gamma=3) == diverged


def test_measuring_refuses_other_contexts_and_data(measured):
    _, (_, corpus, gamma, images, of_images) = measured
    runs.check_refusal(corpus, "--decode needs one of the contexts generated, generated_greedy")
    runs.check_refusal(gamma, "--decode_gamma=9")
    runs.check_refusal(images, commands.OF_TEXT)
    message = "there is no context `corpus` of a run on images; there is images"
    runs.check_refusal(of_images, message)


@pytest.mark.parametrize("lines", [1, 100_000], ids=["kept until the end", "written before it"])
def test_a_closed_pipe_ends_a_program_quietly(lines):
    code = (
        "import sys; from experiments.common import cli; sys.stdin.readline(); "
        f"sys.argv = ['x']; cli.run(lambda _: print('a line\\n' * {lines}))"
    )
    process = runs.start_python("-c", code, PYTHONUNBUFFERED=None)
    process.stdout.close()
    done = runs.end(process, "\n")
    assert (done.returncode, done.stderr) == (1, "")


DEAF = """import os, signal, threading, time
from experiments import decode
from experiments.common import startup
start = threading.Thread.start
{}
with startup.Interrupts():
    decode._timed(lambda: ({}, time.sleep(3600)))
"""


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_call_that_does_not_listen(sign):
    # The pause: on a busy machine a thread may run before its starter waits for it.
    process = runs.start_code(DEAF.format("", "time.sleep(0.5), print('on', flush=True)"))
    assert runs.line(process) == "on\n"
    runs.send_signal(process, sign)
    check_interrupted(runs.end(process), sign)


def test_a_signal_ends_a_call_whose_thread_is_being_started():
    patch = "def begin(thread): start(thread); os.kill(os.getpid(), signal.SIGTERM)\n"
    code = DEAF.format(patch + "threading.Thread.start = begin", "None")
    check_interrupted(runs.end(runs.start_code(code)), signal.SIGTERM)


def check_interrupted(done, sign):
    assert done.returncode == 128 + sign
    assert done.stderr.split("\n") == ["", "error: interrupted", ""]


@pytest.mark.parametrize("gamma", [4, 64])
def test_every_position_of_a_draft_stands_in_80_columns(gamma, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    count = np.full((1, gamma), 123_456)
    counts = speculative.Counts(
        count[:, 0] * 9, count, count // 2, np.full((1, gamma + 1), 654_321), np.array(0)
    )
    decoded = speculative.Decoded([np.zeros(3, int)], [np.zeros(3, np.int8)], counts)
    page = Transcript(Tokenizer.train(["a text"], 257))
    page.statistics(decoded, seconds=1.0, compile_seconds=1.0)
    printed = capsys.readouterr().out
    for position in range(1, gamma + 1):
        assert re.search(rf"^ *{position} +123456 +50\.0 +654321 *$", printed, re.MULTILINE)


def test_pieces_are_the_text_however_tokens_split_it():
    bpe = Tokenizer.train(["naïve"], 257)  # every token is a byte
    tokens = bpe.encode("naïve 漢字 \N{REPLACEMENT CHARACTER}!")
    for cut in (len(tokens), 3):
        pieces = Pieces(bpe)
        texts = [pieces.add(token) for token in tokens[:cut]]
        assert cut == 3 or texts[2:4] == ["", "ï"]
        assert "".join(texts) + pieces.rest() == bpe.decode(tokens[:cut])


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colours_only_where_wanted(no_color, coloured, monkeypatch, capsys):
    for name, value in (("NO_COLOR", no_color), ("FORCE_COLOR", "1"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    bpe = Tokenizer.train(["a text"], 257)
    page = Transcript(bpe)
    tokens = np.array(bpe.encode("a[b]\x1b[0m\u009b\u202e"))
    origin = np.ones((1, len(tokens)), np.int8)
    page.begin("p\t")
    page.stream(tokens[None], np.array([0]), np.array([len(tokens)]), origin)
    page.end()
    printed = capsys.readouterr().out
    assert ("\x1b[32m" in printed) == coloured
    if not coloured:
        assert printed == "p\ta[b]␛[0m\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}\n"
