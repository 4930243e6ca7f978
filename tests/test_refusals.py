"""Bad input to the binaries: one line, exit code 2, nothing begun."""

import collections

import pytest

from tests import commands, runs

TEXTS = "TEXTS"  # in place of the folder of files that are written for a case

CASES = {
    "unknown loss": (
        ["distill", runs.SMOKE, "--config.losses=ce,klx"],
        ["`config.losses`", "did you mean `kl`?"],
    ),
    "unknown key": (
        ["distill", runs.SMOKE, "--config.student.step=3"],
        ["--config.student.step", "`steps`"],
    ),
    "unknown group": (
        ["distill", runs.SMOKE, "--config.studnet.steps=3"],
        ["`studnet`", "`student`"],
    ),
    "no number": (
        ["distill", runs.SMOKE, "--config.seeds=three"],
        ["config.seeds", "must be a whole number", "three"],
    ),
    "float for a count": (
        ["distill", runs.SMOKE, "--config.seeds=1e3"],
        ["config.seeds", "must be a whole number"],
    ),
    "not a number": (
        ["distill", runs.SMOKE, "--config.teacher.optimizer.learning_rate=nan"],
        ["`config.teacher.optimizer.learning_rate`", "got nan"],
    ),
    "exit layer": (
        ["distill", runs.SMOKE, "--config.student.exit_layer=3"],
        ["`config.student.exit_layer`", "`config.teacher.depth` = 2, got 3"],
    ),
    "no files": (
        ["distill", runs.SMOKE, "--config.data.files=/nowhere/*.txt"],
        ["matches no file", "/nowhere/*.txt"],
    ),
    "no data set": (
        ["distill", runs.SMOKE, "--config.data.source=python_stdlb"],
        ["did you mean `python_stdlib`?"],
    ),
    "no config": (["distill"], ["give a config, such as --config=configs/quickstart.py"]),
    "no config file": (
        ["distill", "--config=configs/quikstart.py"],
        ["no such file", "configs/quickstart.py"],
    ),
    "unknown flag": (["distill", runs.SMOKE, "--workdri=x"], ["workdri", "workdir"]),
    "stray argument": (["distill", runs.SMOKE, "losses=ce"], ["unexpected argument 'losses=ce'"]),
    "no donor": (
        ["distill", runs.SMOKE, "--config.teacher.checkpoint=/nowhere"],
        ["/nowhere is not the folder of a run"],
    ),
    "teacher alone": (
        ["teacher", runs.SMOKE, "--config.teacher.depth=0"],
        ["`config.teacher.depth`", "at least 1"],
    ),
    "no Llama": (
        ["teacher", runs.SMOKE, "--from_hf=/nowhere"],
        ["--from_hf=/nowhere: there is no config.json"],
    ),
    "no run": (["acceptance", "--workdir=/nowhere"], ["/nowhere is not the folder of a run"]),
    "no runs": (["acceptance"], ["--workdir=runs/quickstart"]),
    "no report": (["report", "--workdir=/nowhere"], ["/nowhere is not the folder of a run"]),
    "too large a batch": (
        ["distill", runs.SMOKE, "--config.student.batch_size=500000"],
        ["`config.student`", "tokens"],
    ),
    "too long a prompt": (
        [
            "distill",
            runs.SMOKE,
            "--config.data.files=TEXTS/*.txt",
            "--config.evaluation.document_tokens=2048",
            "--config.evaluation.prompt_tokens=2040",
        ],
        [
            "`config.evaluation.prompt_tokens`",
            "no document has more than 2040 tokens; the longest has",
        ],
    ),
    "classes": (
        ["distill", commands.DIGITS, "--config.data.vocabulary=11"],
        ["`config.data.vocabulary` must be 10, which digits has"],
    ),
    "no images": (
        ["distill", commands.DIGITS, "--config.data.source=digts"],
        ["did you mean `digits`?"],
    ),
    "benchmark of text": (["benchmarks.population", commands.DIGITS], [commands.OF_TEXT]),
    "benchmark": (
        ["benchmarks.population", runs.SMOKE, "--students=1,x"],
        ["--students", "got 1,x"],
    ),
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """Every case's ended command and its work folder; the first is a process of its own, the others
    one a binary."""
    folder, of = tmp_path_factory.mktemp("refused"), collections.defaultdict(list)
    runs.write_texts(folder / TEXTS)
    first, *others = CASES
    for case in others:
        of[CASES[case][0][0]].append(case)
    ended = {first: runs.run(*_flags(first, folder))}
    for name, cases in of.items():
        ended |= zip(
            cases, commands.many(name, [_flags(case, folder)[1:] for case in cases]), strict=True
        )
    return folder, ended


def _flags(case, folder):
    name, *given = (flag.replace(TEXTS, str(folder / TEXTS)) for flag in CASES[case][0])
    takes_folder = name in ("distill", "teacher")
    return [name, *given, *([f"--workdir={folder / case}"] if takes_folder else [])]


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line(refusals, case):
    folder, ended = refusals
    runs.check_refusal(ended[case], *CASES[case][1])
    assert not (folder / case / "teacher").exists()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    done = runs.run("distill", runs.SMOKE, f"--workdir={tmp_path / 'file' / 'run'}")
    runs.check_refusal(done, f"work folder {tmp_path / 'file' / 'run'} can't be written to")
