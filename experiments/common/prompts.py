"""The prompts that a binary continues: one that is given, a file's, or the beginning of held-out
text."""

import json
import pathlib

from jaxdiv.evaluation import contexts
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training.run_data import TextData


def load(run: Workdir, *, prompt: str | None, path: str | None) -> list[str]:
    """The prompt, or those of a file, or of neither the beginning of the run's first held-out
    document.

    Args:
      run: a finished run.
      prompt: text, as it stands.
      path: a file in UTF-8 with a prompt a line, in a .jsonl as {"prompt": "..."}; blank lines are
        skipped.

    Raises:
      ValueError: both are given, or a prompt is empty or no text.
    """
    if prompt is not None and path is not None:
        raise ValueError("give --prompt or --prompts_file, not both")
    if path is not None:
        return _read(pathlib.Path(path))
    if prompt is not None:
        return [_checked(prompt, "--prompt")]
    corpus = TextData.load(run)
    return [corpus.tokenizer.decode(contexts.prompts(run.config(), corpus)[0][0])]


def _read(path):
    if not path.is_file():
        raise ValueError(f"--prompts_file={path} is no file")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            place = f"line {number} of {path}"
            found.append(
                _checked(
                    _from_json(line, place) if path.suffix.lower() == ".jsonl" else line, place
                )
            )
    if not found:
        raise ValueError(f"{path} holds no prompt")
    return found


def _from_json(line, place):
    try:
        return json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(
            f'{place} must be an object with a prompt, as {{"prompt": "..."}}, got {line[:60]}'
        ) from None


def _checked(prompt, place):
    if not isinstance(prompt, str) or not prompt:
        raise ValueError(f"{place}: the prompt must be text that is not empty, got {prompt!r}")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{place}: the prompt is not UTF-8") from None
    return prompt
