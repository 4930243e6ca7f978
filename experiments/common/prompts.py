"""Prompts to continue: one on the command line, a file's, or the beginning of held-out text."""

import json
import pathlib

from jaxdiv.evaluation import contexts
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training.run_data import TextData


def load(run: Workdir, *, prompt: str | None, path: str | None) -> list[str]:
    """Returns the prompt, those of a file, or the beginning of the run's first held-out document.

    Args:
      run: a finished run.
      prompt: text, taken literally.
      path: a UTF-8 file with a prompt a line, in a .jsonl file as {"prompt": "..."}. Blank lines
        are skipped.

    Raises:
      ValueError: both are given, or a prompt is empty or no text.
    """
    if prompt is not None and path is not None:
        raise ValueError("give --prompt or --prompts_file, not both")
    if path is not None:
        return _read(pathlib.Path(path))
    if prompt is not None:
        return [_check(prompt, "--prompt")]
    data = TextData.load(run)
    return [data.tokenizer.decode(contexts.prompts(run.spec().evaluation, data)[0][0])]


def _read(path: pathlib.Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"--prompts_file={path} is no file")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from None
    parse, prompts = _from_json if path.suffix.lower() == ".jsonl" else _check, []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            prompts.append(parse(line, f"line {number} of {path}"))
    if not prompts:
        raise ValueError(f"{path} holds no prompt")
    return prompts


def _from_json(line, place):
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(
            f'{place} must be an object with a prompt, as {{"prompt": "..."}}, got {line[:60]}'
        ) from None
    return _check(prompt, place)


def _check(prompt, place):
    if not isinstance(prompt, str) or not prompt:
        raise ValueError(f"{place}: the prompt must be text that is not empty, got {prompt!r}")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{place}: the prompt is not UTF-8") from None
    return prompt
