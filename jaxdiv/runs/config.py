"""What a run's config may hold, checked before any data is read."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jaxdiv
from jaxdiv import models
from jaxdiv.acceptance import RULES
from jaxdiv.models.layers import check_heads
from jaxdiv.runs import sharding

TEXTS, IMAGES = "text", "images"
# Who writes the text that students are trained on: the data's authors, the teacher, or each student itself.
CORPUS, TEACHER_TEXT, STUDENT_TEXT = TRAINING_CONTEXTS = ("corpus", "teacher", "student")
CONTEXTS = ("corpus", "generated", "generated_greedy", IMAGES)
MAX_DOCUMENT_TOKENS = 2048
DECIDE_NO_RESULT = ("config.mesh", "config.checkpoint", "config.log")


class Rule(NamedTuple):
    allowed: str
    holds: Callable[[Any], bool]


def _number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(low, high=math.inf):
    text = (
        f"a whole number of at least {low}"
        if high == math.inf
        else f"a whole number in {low}..{high}"
    )
    return Rule(text, lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high)


def _one_of(*names):
    return Rule("one of " + ", ".join(names), lambda v: v in names)


def _devices(value):
    return value == sharding.REST or _whole(1).holds(value)


def _names(text):
    return tuple(part.strip() for part in text.split(","))


def _some_of(known):
    def holds(text):
        names = _names(text)
        return len(set(names)) == len(names) and set(names) <= set(known)

    return Rule(
        f"different ones of {','.join(known)}, by commas", lambda v: isinstance(v, str) and holds(v)
    )


def _temperatures(value):
    return (
        len(value) > 0
        and len(set(value)) == len(value)
        and all(_number(t) and t >= 0 for t in value)
    )


POSITIVE = Rule("a finite number above 0", lambda v: _number(v) and v > 0)
NOT_NEGATIVE = Rule("a finite number of at least 0", lambda v: _number(v) and v >= 0)
FRACTION = Rule("a number in [0, 1]", lambda v: _number(v) and 0 <= v <= 1)
DECAY = Rule("a number in [0, 1)", lambda v: _number(v) and 0 <= v < 1)
TEMPERATURES = Rule("different finite numbers of at least 0 (greedy), by commas", _temperatures)
TEXT = Rule("text", lambda v: isinstance(v, str))
SOME_CONTEXTS = _some_of(CONTEXTS)
SOME_RULES = _some_of(RULES)
DEVICES = Rule(
    f"a whole number of at least 1, or {sharding.REST} for all devices that the others leave",
    _devices,
)
NAME = Rule("text that is not empty", lambda v: isinstance(v, str) and v.strip() != "")

OPTIMIZER = {
    "name": _one_of("adamw", "sgd"),
    "learning_rate": POSITIVE,
    "warmup_steps": _whole(0),
    "final_fraction": FRACTION,
    "weight_decay": NOT_NEGATIVE,
    "beta1": DECAY,
    "beta2": DECAY,
    "epsilon": POSITIVE,
    "clip_norm": NOT_NEGATIVE,
}
DECODER = {
    "depth": _whole(1),
    "width": _whole(2),
    "heads": _whole(1),
    "kv_heads": _whole(1),
    "mlp_width": _whole(1),
}
STAGE = {"steps": _whole(1), "batch_size": _whole(1), "optimizer": OPTIMIZER}
SCHEMA = {
    "losses": NAME,
    "seeds": _whole(1),
    "seed": _whole(0, 2**31 - 1),
    "temperature": POSITIVE,
    "dtype": _one_of("float32", "bfloat16"),
    "data": {
        "kind": _one_of(TEXTS, IMAGES),
        "source": NAME,
        "feature": NAME,
        "label": NAME,
        "channels": _whole(1),
        "directory": TEXT,
        "files": TEXT,
        "vocabulary": _whole(2),
        "sequence_length": _whole(1),
        "context": _one_of(*TRAINING_CONTEXTS),
        "context_share": FRACTION,
        "context_prompt": _whole(1),
    },
    "teacher": {
        "kind": _one_of("decoder", models.CLASSIFIER),
        "checkpoint": TEXT,
        "padded_vocabulary": _whole(0, 2**24),
        "rope_base": POSITIVE,
        "norm_epsilon": POSITIVE,
        **DECODER,
        **STAGE,
    },
    "student": {
        "kind": _one_of("kangaroo", "decoder", models.CLASSIFIER),
        "exit_layer": _whole(1),
        "learning_rates": TEXT,
        **DECODER,
        **STAGE,
    },
    "evaluation": {
        "temperatures": TEMPERATURES,
        "contexts": SOME_CONTEXTS,
        "rules": SOME_RULES,
        "documents": _whole(2),
        "document_tokens": _whole(2, MAX_DOCUMENT_TOKENS),
        "prompt_tokens": _whole(1),
        "generated_tokens": _whole(9),
    },
    "mesh": dict.fromkeys(sharding.AXES, DEVICES),
    "checkpoint": {"every": _whole(1), "keep": _whole(1)},
    "log": {"every": _whole(1)},
}


def check(config: Mapping) -> None:
    """Raises ValueError, one line with the key, its value and what is allowed, at the first
    fault."""
    check_each(config)
    _check_together(config)


def check_each(config: Mapping) -> None:
    """As `check`, but only each value by itself."""
    for key, rule, value in _pair("config", SCHEMA, config):
        check_value(f"`{key}`", rule, value)


def check_value(name: str, rule: Rule, value: Any) -> None:
    """Raises ValueError with the name, its value and what is allowed."""
    try:
        holds = rule.holds(value)
    except TypeError:
        holds = False
    if not holds:
        raise ValueError(f"{name} must be {rule.allowed}, got {value!r}")


def losses(config: Mapping) -> tuple[jaxdiv.Loss, ...]:
    """The run's losses, in the order of the config. Raises ValueError for an unknown or repeated
    one."""
    try:
        return tuple(jaxdiv.get(text) for text in jaxdiv.split(config["losses"]))
    except ValueError as error:
        raise ValueError(f"`config.losses`: {error}") from None


def of_images(config: Mapping) -> bool:
    """Whether the run's data are images, each a row of one prediction, and no text."""
    return config["data"]["kind"] == IMAGES


def teacher(config: Mapping) -> dict[str, Any]:
    """The teacher's part with what of the rest its model needs."""
    return {**config["teacher"], "dtype": config["dtype"], "channels": config["data"]["channels"]}


def learning_rates(config: Mapping) -> tuple[float, ...]:
    """Each loss's, in the order of `losses`: that of `config.student.learning_rates`, else the
    optimizer's.

    Raises:
      ValueError: it names a loss that the run has not, one twice, or no finite number above 0.
    """
    names, given = [loss.text for loss in losses(config)], {}
    for part in filter(str.strip, config["student"]["learning_rates"].split(";")):
        name, _, rate = (text.strip() for text in part.rpartition(":"))
        if name not in names or name in given:
            raise ValueError(
                f"`config.student.learning_rates`: {part.strip()!r} must be LOSS: RATE of another one of the run's "
                f"losses, {', '.join(names)}"
            )
        try:
            given[name] = float(rate)
        except ValueError:
            given[name] = math.nan
        check_value(f"`config.student.learning_rates`, of {name},", POSITIVE, given[name])
    return tuple(given.get(name, config["student"]["optimizer"]["learning_rate"]) for name in names)


def on_policy_rows(config: Mapping) -> int:
    """Returns how many rows of a student batch a model writes: `config.data.context_share` of them, rounded."""
    if config["data"]["context"] == CORPUS:
        return 0
    return round(config["data"]["context_share"] * config["student"]["batch_size"])


def contexts(text: str) -> tuple[str, ...]:
    """The names in `text`, by commas."""
    return _names(text)


def rules(text: str) -> tuple[str, ...]:
    """The names in `text`, by commas; `sampling`, by which losses are ranked, is always one of
    them."""
    return ("sampling", *(name for name in _names(text) if name != "sampling"))


def flatten(config: Mapping, prefix: str = "config") -> dict[str, Any]:
    """Dotted key to leaf."""
    leaves = {}
    for key, value in config.items():
        name = f"{prefix}.{key}"
        leaves |= (
            flatten(value, name)
            if isinstance(value, Mapping) or hasattr(value, "items")
            else {name: value}
        )
    return leaves


def differences(one: Mapping, other: Mapping) -> dict[str, tuple[Any, Any]]:
    """Dotted key to both values, where they differ."""
    # JSON has no tuples.
    plain = [
        {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in flatten(config).items()
        }
        for config in (one, other)
    ]
    keys = sorted(plain[0].keys() | plain[1].keys())
    pairs = {key: (plain[0].get(key), plain[1].get(key)) for key in keys}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b}


def may_change(key: str, old: Any, new: Any) -> bool:
    """Whether a run that is begun may go on with `new`: what decides no result, and more steps of
    the students."""
    if key == "config.student.steps":
        return new > old
    return within(key, DECIDE_NO_RESULT)


def within(key: str, keys: Iterable[str]) -> bool:
    """Whether the dotted `key` is one of `keys` or lies below one."""
    return any(key == known or key.startswith(f"{known}.") for known in keys)


def _pair(prefix, schema, config):
    """(dotted key, rule, value) of every leaf; refuses missing and undeclared keys."""
    if not hasattr(config, "items"):
        raise ValueError(f"`{prefix}` must hold {', '.join(schema)}, got {config!r}")
    for key in config:
        if key not in schema:
            raise ValueError(f"`{prefix}.{key}` is not a key of a run; known: {', '.join(schema)}")
    for key, rule in schema.items():
        if key not in config:
            raise ValueError(f"`{prefix}.{key}` is missing; see configs/quickstart.py")
        if isinstance(rule, dict):
            yield from _pair(f"{prefix}.{key}", rule, config[key])
        else:
            yield f"{prefix}.{key}", rule, config[key]


def _check_heads(prefix, width, heads, kv_heads):
    try:
        check_heads(width, heads, kv_heads)
    except ValueError as error:
        raise ValueError(f"{prefix}: {error}") from None


def _check_together(config):
    learning_rates(config)
    (_check_images if of_images(config) else _check_texts)(config)
    teacher = config["teacher"]
    if 0 < teacher["padded_vocabulary"] < config["data"]["vocabulary"]:
        raise ValueError(
            f"`config.teacher.padded_vocabulary` must be 0 or at least `config.data.vocabulary` = "
            f"{config['data']['vocabulary']}, got {teacher['padded_vocabulary']}"
        )
    if list(config["mesh"].values()).count(sharding.REST) > 1:
        raise ValueError(
            f"`config.mesh` may have one axis of {sharding.REST}, got {config['mesh']}"
        )
    for name in ("teacher", "student"):
        stage = config[name]
        if stage["optimizer"]["warmup_steps"] >= stage["steps"]:
            raise ValueError(
                f"`config.{name}.optimizer.warmup_steps` must be below `config.{name}.steps` = {stage['steps']}, "
                f"got {stage['optimizer']['warmup_steps']}"
            )


def _check_images(config):
    """What is written for text can't be asked of images."""
    for key, allowed in {
        "teacher.kind": models.CLASSIFIER,
        "student.kind": models.CLASSIFIER,
        "data.sequence_length": 1,
        "data.context": CORPUS,
        "data.files": "",
        "evaluation.contexts": IMAGES,
        "teacher.padded_vocabulary": 0,
    }.items():
        group, name = key.split(".")
        if config[group][name] != allowed:
            raise ValueError(
                f"`config.{key}` must be {allowed!r} where data are images, got {config[group][name]!r}"
            )


def _check_texts(config):
    data, teacher, student, evaluation = (
        config[name] for name in ("data", "teacher", "student", "evaluation")
    )
    for name, stage in (("teacher", teacher), ("student", student)):
        if stage["kind"] == models.CLASSIFIER:
            raise ValueError(
                f"`config.{name}.kind` is classifier, which is for `config.data.kind` images"
            )
    if IMAGES in contexts(evaluation["contexts"]):
        raise ValueError(
            "`config.evaluation.contexts` has images, which is for `config.data.kind` images"
        )
    for key, least in (("vocabulary", 257), ("sequence_length", 2)):
        check_value(f"`config.data.{key}`", _whole(least), data[key])
    _check_heads("config.teacher", teacher["width"], teacher["heads"], teacher["kv_heads"])
    if student["kind"] == "kangaroo":
        if student["exit_layer"] > teacher["depth"]:
            raise ValueError(
                f"`config.student.exit_layer` must be at most `config.teacher.depth` = {teacher['depth']}, "
                f"got {student['exit_layer']}"
            )
        _check_heads("config.student", teacher["width"], student["heads"], student["kv_heads"])
    else:
        _check_heads("config.student", student["width"], student["heads"], student["kv_heads"])
    if data["context"] != CORPUS:
        if data["context_prompt"] >= data["sequence_length"]:
            raise ValueError(
                f"`config.data.context_prompt` must be below `config.data.sequence_length` = "
                f"{data['sequence_length']}, got {data['context_prompt']}"
            )
        if not on_policy_rows(config):
            raise ValueError(
                f"`config.data.context_share` = {data['context_share']} of `config.student.batch_size` = "
                f"{student['batch_size']} is no row; raise it, or set `config.data.context` to corpus"
            )
    if evaluation["prompt_tokens"] >= evaluation["document_tokens"]:
        raise ValueError(
            f"`config.evaluation.prompt_tokens` must be below `config.evaluation.document_tokens` = "
            f"{evaluation['document_tokens']}, got {evaluation['prompt_tokens']}"
        )
