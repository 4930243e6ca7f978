"""Bad input to the programs: one line, exit code 2, nothing started."""

import collections

import pytest

from tests import commands, runs

# Flags of `distill --config=configs/smoke.py`, and parts of the message.
SMOKE_CASES = {
    "--config.losses=ce,klx": ["`config.losses`", "did you mean `kl`?"],
    "--config.student.step=3": ["--config.student.step", "`steps`"],
    "--config.studnet.steps=3": ["`studnet`", "`student`"],
    "--config.seeds=three": ["config.seeds", "must be a whole number", "three"],
    "--config.seeds=1e3": ["config.seeds", "must be a whole number"],
    "--config.teacher.optimizer.learning_rate=nan": [
        "`config.teacher.optimizer.learning_rate`",
        "got nan",
    ],
    "--config.student.exit_layer=3": [
        "`config.student.exit_layer`",
        "`config.teacher.depth` = 2, got 3",
    ],
    "--config.teacher.cache=gs://bucket/cache": [
        "`config.teacher.cache` must be a folder of this machine, got gs://bucket/cache"
    ],
    "--config.data.files=/nowhere/*.txt": ["matches no file", "/nowhere/*.txt"],
    "--config.data.source=python_stdlb": ["did you mean `python_stdlib`?"],
    "--workdri=x": ["workdri", "workdir"],
    "losses=ce": ["unexpected argument 'losses=ce'"],
    "--config.teacher.checkpoint=/nowhere": ["/nowhere is not the folder of a run"],
}
LONG_PROMPT = [
    "--config.data.files=TEXTS/*.txt",  # TEXTS: replaced by a folder of text files
    "--config.evaluation.document_tokens=2048",
    "--config.evaluation.prompt_tokens=2040",
]
# Name to program, arguments and parts of the message.
CASES = {
    **{flag: ("distill", [runs.SMOKE, flag], parts) for flag, parts in SMOKE_CASES.items()},
    "no config": ("distill", [], ["give a config, such as --config=configs/quickstart.py"]),
    "no config file": (
        "distill",
        ["--config=configs/quikstart.py"],
        ["no such file", "configs/quickstart.py"],
    ),
    "teacher alone": (
        "teacher",
        [runs.SMOKE, "--config.teacher.depth=0"],
        ["`config.teacher.depth`", "at least 1"],
    ),
    "no Llama": (
        "teacher",
        [runs.SMOKE, "--from_hf=/nowhere"],
        ["--from_hf=/nowhere: there is no config.json"],
    ),
    "GGUF file as a folder": (
        "teacher",
        [runs.SMOKE, "--from_hf=/nowhere/x.gguf"],
        ["--from_hf=/nowhere/x.gguf is a GGUF file; give it as --from_gguf"],
    ),
    "folder as a GGUF file": (
        "teacher",
        [runs.SMOKE, "--from_gguf=configs"],
        ["--from_gguf=configs is a folder; give it as --from_hf"],
    ),
    "no cache": ("cache", [runs.SMOKE], ["`config.teacher.cache` is empty; give it a folder"]),
    "no run": ("acceptance", ["--workdir=/nowhere"], ["/nowhere is not the folder of a run"]),
    "no runs": ("acceptance", [], ["--workdir=runs/quickstart"]),
    "no report": ("report", ["--workdir=/nowhere"], ["/nowhere is not the folder of a run"]),
    "too long a prompt": (
        "distill",
        [runs.SMOKE, *LONG_PROMPT],
        [
            "`config.evaluation.prompt_tokens`",
            "no document has more than 2040 tokens; the longest has",
        ],
    ),
    "too large a batch": (
        "distill",
        [runs.SMOKE, LONG_PROMPT[0], "--config.student.batch_size=500000"],
        ["`config.student`", "tokens"],
    ),
    "classes": (
        "distill",
        [commands.DIGITS, "--config.data.vocabulary=11"],
        ["`config.data.vocabulary` must be 10, which digits has"],
    ),
    "no images": (
        "distill",
        [commands.DIGITS, "--config.data.source=digts"],
        ["did you mean `digits`?"],
    ),
    "benchmark of text": ("benchmarks.population", [commands.DIGITS], [commands.OF_TEXT]),
    "benchmark": (
        "benchmarks.population",
        [runs.SMOKE, "--students=1,x"],
        ["--students", "got 1,x"],
    ),
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory, texts):
    """Every case's ended command and the root of all folders; the first has its own process."""
    root, arguments = tmp_path_factory.mktemp("refused"), collections.defaultdict(dict)
    for i, (case, (program, flags, _)) in enumerate(CASES.items()):
        takes_folder = program in ("distill", "teacher", "cache")
        folder = [f"--workdir={root / str(i)}"] if takes_folder else []
        flags = [flag.replace("TEXTS", str(texts)) for flag in flags]
        arguments[program][case] = [*flags, *folder]
    first = next(iter(CASES))
    ended = {first: runs.run("distill", *arguments["distill"].pop(first))}
    for program, by_case in arguments.items():
        ended |= zip(by_case, commands.many(program, list(by_case.values())), strict=True)
    return root, ended


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line(refusals, case):
    root, ended = refusals
    runs.check_refusal(ended[case], *CASES[case][2])
    assert not list(root.glob("*/teacher"))


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    done = runs.run("distill", runs.SMOKE, f"--workdir={tmp_path / 'file' / 'run'}")
    runs.check_refusal(done, f"work folder {tmp_path / 'file' / 'run'} can't be written to")
