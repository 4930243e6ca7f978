"""A run's config: defaults, the check before any data is read, and what a started run may change.

To write docs/config.md anew:

python -m jaxdiv.runs.config > docs/config.md
"""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxdiv import files, models
from jaxdiv.models.layers import FAMILY_OPTIONS, DecoderOptions, check_heads
from jaxdiv.runs import config_keys
from jaxdiv.runs.config_keys import ConfigKey, check_value
from jaxdiv.runs.specs import RunSpec, parse_learning_rates


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested mappings by dotted key."""
    leaves = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        leaves |= flatten(value, f"{name}.") if hasattr(value, "items") else {name: value}
    return leaves


_TREE = config_keys.keys_of(RunSpec)
KEYS: dict[str, ConfigKey] = flatten(_TREE)
DECIDE_NO_RESULT = ("config.mesh", "config.checkpoint", "config.log", "config.teacher.copy")
_OF_IMAGES = {
    "teacher.kind": models.CLASSIFIER,
    "student.kind": models.CLASSIFIER,
    "data.sequence_length": 1,
    "data.context": config_keys.CORPUS,
    "data.files": "",
    "data.chat_template": "",
    "data.loss_on": "all",
    "evaluation.contexts": config_keys.IMAGES,
    "teacher.padded_vocabulary": 0,
    "teacher.cache": "",
    "student.vocabulary": 0,
}


def check(config: Mapping) -> None:
    """Raises ValueError at the first wrong key: one line with key, value and what is allowed."""
    check_each(config)
    run, values = RunSpec.from_config(config), flatten(config)
    parse_learning_rates(run.student.learning_rates, [loss.text for loss in run.losses])
    if run.data.is_images:
        for key, allowed in _OF_IMAGES.items():
            if values[key] != allowed:
                raise ValueError(
                    f"`config.{key}` must be {allowed!r} if the data are images, "
                    f"got {values[key]!r}"
                )
    else:
        _check_texts(run, values)
    vocabulary, padded = run.data.vocabulary, run.teacher.padded_vocabulary
    if 0 < padded < vocabulary:
        raise ValueError(
            "`config.teacher.padded_vocabulary` must be 0 or at least `config.data.vocabulary` = "
            f"{vocabulary}, got {padded}"
        )
    drafted = run.student.vocabulary
    if drafted and not 2 <= drafted <= vocabulary:
        raise ValueError(
            f"`config.student.vocabulary` must be 0 for all tokens, or in 2..{vocabulary}, "
            f"`config.data.vocabulary`, got {drafted}"
        )
    if list(config["mesh"].values()).count(config_keys.REST) > 1:
        raise ValueError(
            f"`config.mesh` may have one axis of {config_keys.REST}, got {config['mesh']}"
        )
    for stage in ("teacher", "student"):
        _check_below(values, f"{stage}.optimizer.warmup_steps", f"{stage}.steps")


def _check_texts(run: RunSpec, values: Mapping[str, Any]) -> None:
    teacher, student = run.teacher, run.student
    for name in ("teacher", "student"):
        if values[f"{name}.kind"] == models.CLASSIFIER:
            raise ValueError(
                f"`config.{name}.kind` is classifier, which is for `config.data.kind` images"
            )
    if config_keys.IMAGES in run.evaluation.contexts:
        raise ValueError(
            "`config.evaluation.contexts` has images, which is for `config.data.kind` images"
        )
    for key, low in {"data.vocabulary": 257, "data.sequence_length": 2}.items():
        check_value(f"`config.{key}`", config_keys.whole(low), values[key])
    kangaroo = student.kind == models.KANGAROO
    if kangaroo and student.exit_layer > teacher.depth:
        raise ValueError(
            "`config.student.exit_layer` must be at most `config.teacher.depth` = "
            f"{teacher.depth}, got {student.exit_layer}"
        )
    keys = (*config_keys.DECODER_SIZES, *FAMILY_OPTIONS)
    options = {key: values[f"teacher.{key}"] for key in keys}
    name = "teacher"
    try:
        DecoderOptions(vocab_size=run.data.vocabulary, **options)
        name = "student"
        check_heads(teacher.width if kangaroo else student.width, student.heads, student.kv_heads)
    except ValueError as error:
        raise ValueError(f"config.{name}: {error}") from None
    if run.data.context != config_keys.CORPUS:
        _check_below(values, "data.context_prompt", "data.sequence_length")
        if run.on_policy is None:
            raise ValueError(
                f"`config.data.context_share` = {run.data.context_share} of "
                f"`config.student.batch_size` = {student.batch_size} rounds to no row; raise it, "
                "or set `config.data.context` to corpus"
            )
    if files.in_bucket(teacher.cache):
        raise ValueError(
            f"`config.teacher.cache` must be a folder of this machine, got {teacher.cache}"
        )
    if teacher.cache and run.data.context == config_keys.STUDENT_TEXT:
        raise ValueError(
            "`config.data.context` must be corpus or teacher with `config.teacher.cache`, which is "
            "made before there are students, got 'student'"
        )
    _check_below(values, "evaluation.prompt_tokens", "evaluation.document_tokens")


def _check_below(values: Mapping[str, Any], key: str, limit: str) -> None:
    if values[key] >= values[limit]:
        raise ValueError(
            f"`config.{key}` must be below `config.{limit}` = {values[limit]}, got {values[key]}"
        )


def defaults(keys: Mapping = _TREE) -> dict[str, Any]:
    """Returns a new config with the default of every key, as nested plain values."""
    return {
        name: defaults(key) if isinstance(key, dict) else key.default for name, key in keys.items()
    }


def completed(config: Mapping, keys: Mapping = _TREE) -> dict[str, Any]:
    """Returns a run's config with the defaults of keys that it was begun without.

    A new key's default is what runs did before there was the key.
    """
    config = defaults(keys) | dict(config)
    for name, key in keys.items():
        if isinstance(key, dict) and isinstance(config[name], Mapping):
            config[name] = completed(config[name], key)
    return config


def check_each(config: Mapping) -> None:
    """Raises ValueError for missing, unknown and wrong keys, each looked at by itself."""
    _check_group("config", _TREE, config)


def _check_group(prefix: str, keys: Mapping, group: Any) -> None:
    if not hasattr(group, "items"):
        raise ValueError(f"`{prefix}` must hold {', '.join(keys)}, got {group!r}")
    for name in group:
        if name not in keys:
            raise ValueError(f"`{prefix}.{name}` is not a key of a run; known: {', '.join(keys)}")
    for name, key in keys.items():
        if name not in group:
            raise ValueError(f"`{prefix}.{name}` is missing; see docs/config.md")
        if isinstance(key, dict):
            _check_group(f"{prefix}.{name}", key, group[name])
        else:
            check_value(f"`{prefix}.{name}`", key.rule, group[name])


def differences(one: Mapping, other: Mapping) -> dict[str, tuple[Any, Any]]:
    """Returns both values of each dotted key, such as `config.seed`, in which two configs differ.

    Tuples equal lists, since config.json has no tuples.
    """
    one, other = (
        {k: list(v) if isinstance(v, tuple) else v for k, v in flatten(config, "config.").items()}
        for config in (one, other)
    )
    pairs = {key: (one.get(key), other.get(key)) for key in sorted(one | other)}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b}


def may_change(key: str, old: Any, new: Any) -> bool:
    """Returns True if a started run may go on with `new`.

    It may if the key decides no result, or asks for more steps of the students. The folder of a
    cache may move, since its content is checked.
    """
    if key == "config.teacher.cache":
        return bool(old and new)
    if key == "config.student.steps":
        return new > old
    return within(key, DECIDE_NO_RESULT)


def within(key: str, groups: Iterable[str]) -> bool:
    """Returns True if the dotted `key` is one of `groups` or lies below one."""
    return any(key == group or key.startswith(f"{group}.") for group in groups)


_PAGE = """# Config keys

Every file in [configs](../configs) starts from these defaults, which are those of
`configs/quickstart.py`, and changes what differs. On the command line a key is
`--config.teacher.steps=1000`. A missing, unknown or wrong key is refused before any work.

This page is written by `python -m jaxdiv.runs.config > docs/config.md` from the specs in
`jaxdiv/runs/specs.py`.

| key | meaning | allowed | default |
|---|---|---|---|
"""


def page() -> str:
    """Returns docs/config.md: a table of all keys."""
    rows = []
    for name, key in KEYS.items():
        values = key.default if isinstance(key.default, tuple) else (key.default,)
        default = ", ".join(map(str, values))
        default = f"`{default}`" if default else "empty"
        rows.append(f"| `{name}` | {key.meaning} | {key.rule.allowed} | {default} |\n")
    return _PAGE + "".join(rows)


if __name__ == "__main__":
    print(page(), end="")
