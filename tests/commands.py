"""Runs many commands of one program in one process, and makes untrained runs to try them on."""

import contextlib
import importlib
import io
import json
import pathlib
import shlex
import subprocess
import sys

import numpy as np
from absl.testing import flagsaver

from configs import digits, smoke
from experiments.common import cli
from jaxdiv.models import build_teacher
from jaxdiv.runs.checkpoints import Checkpoints
from jaxdiv.runs.specs import RunSpec
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import run_data, state, students
from tests import runs

DIGITS = "--config=configs/digits.py"
OF_TEXT = "`config.data.kind` is images, of which there are no tokens; this is for runs on text"


def many(
    name: str, commands: list[list[str]], *, resumes: bool = False
) -> list[subprocess.CompletedProcess]:
    """Runs each command as `runs.run` does, but in one process, which compiles once.

    Args:
      name: of the program.
      commands: the arguments of each.
      resumes: as of `cli.run`.
    """
    code = (
        "import json, sys; from tests import commands; commands.run_all(*json.loads(sys.argv[1]))"
    )
    done = runs.end(runs.start_code(code, json.dumps([name, commands, resumes])))
    assert done.returncode == 0, done.stderr
    return [subprocess.CompletedProcess(*ended) for ended in json.loads(done.stdout)]


def run_all(name: str, commands: list[list[str]], resumes: bool) -> None:
    """Prints (arguments, exit code, output, error) of each command, in the process of `many`."""
    main, ended = importlib.import_module(f"experiments.{name}").main, []
    for arguments in commands:
        # Shows the command of a process that does not end.
        print(name, shlex.join(arguments), file=sys.stderr, flush=True)
        sys.argv, output, error, code = [name, *arguments], io.StringIO(), io.StringIO(), 0
        with (
            flagsaver.flagsaver(),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(error),
        ):
            try:
                cli.run(main, resumes)
            except SystemExit as done:
                code = done.code or 0
        ended.append((arguments, code, output.getvalue(), error.getvalue()))
    print(json.dumps(ended))


def untrained(folder: pathlib.Path, texts: pathlib.Path) -> pathlib.Path:
    """Makes the folder of a smoke run as if finished, with untrained teacher and students."""
    config = smoke.get_config().to_dict()
    config["data"]["files"] = f"{texts}/*.txt"
    run = Workdir(folder)
    run.initialize_or_resume(config)
    spec = RunSpec.from_config(config)
    vocab_size = run_data.prepare(spec, run).tokenizer.vocab_size
    teacher = state.population(
        lambda rngs: build_teacher(
            {**config["teacher"], "dtype": config["dtype"]}, vocab_size, rngs
        ),
        [config["seed"]],
    )
    with Checkpoints(run.teacher) as checkpoints:
        checkpoints.save(config["teacher"]["steps"], {"params": (teacher.params,)}, {})
    params, finite = students.untrained(spec, vocab_size).params, np.ones(config["seeds"], bool)
    count = len(spec.losses)
    with Checkpoints(run.students) as checkpoints:
        checkpoints.save(
            config["student"]["steps"],
            {"params": (params,) * count, "alive": (finite,) * count},
            {},
        )
    return folder


def of_images(folder: pathlib.Path) -> pathlib.Path:
    """Makes the folder of a run on images that was only started."""
    Workdir(folder).initialize_or_resume(digits.get_config().to_dict())
    return folder
