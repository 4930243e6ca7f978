"""The causes: mistakes and choices in training, each a small change to a sound one, and choices in
measuring.

A cause is written as a name of `TRAINING` or `MEASURING`, or several joined by `+`.
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax

from experiments.gap import formulas

BASELINE = "baseline"
STUDENT, HEAD, TEACHER = "student", "head", "teacher"
# What a student reads of a batch and of the teacher.
OWN, NEXT, OTHER_LAYER, OTHER_ROW, PADDED = "own", "next", "other_layer", "other_row", "padded"
TOP_CLASS, LABELS = "top_class", "labels"  # in place of the teacher's distribution


@dataclasses.dataclass(frozen=True)
class Change:
    """How a student's training departs from the sound one, which this is as it stands.

    Attributes:
      formula: from `ce` or `kl` to its formula.
      reduce: (values, weights, vocab_size) -> scalar.
      optimizer: settings in place of the config's.
      rate: times the learning rate.
      clip_value: each number of the gradient is cut to it; 0 for none.
      sees: what the student reads.
      learns: what is trained beside the student.
    """

    formula: Callable[[str], formulas.Formula] = formulas.right
    reduce: Callable[[jax.Array, jax.Array, int], jax.Array] = lambda values, weights, _: (
        formulas.mean(values, weights)
    )
    optimizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rate: float = 1.0
    clip_value: float = 0.0
    sees: str = OWN
    learns: str = STUDENT


@dataclasses.dataclass(frozen=True)
class Cause:
    """A cause by its text.

    Attributes:
      text: as in the table.
      training: the names of what it changes in training, joined by `+`; `baseline` if nothing.
      change: that change.
      measuring: what it changes in the measure, of `MEASURING`'s values.
    """

    text: str
    training: str
    change: Change
    measuring: Mapping[str, Any]


def _temperature(value, squared=True):
    return {"formula": functools.partial(formulas.right, temperature=value, squared=squared)}


_SCALE = 2.0**10  # of the loss in float16


def _in_float16(scale=1.0, **options):
    return {
        "formula": functools.partial(formulas.in_float16, scale=scale, **options),
        "reduce": lambda values, weights, _: formulas.mean_in_float16(values, weights, scale),
    }


TRAINING: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        BASELINE: {},
        "untrained": {"rate": 0.0},
        # The formula.
        "softmax_twice": {"formula": formulas.softmax_twice},
        "without_log": {"formula": formulas.without_log},
        "arguments_swapped": {"formula": formulas.arguments_swapped},
        "float16": _in_float16(),
        "float16_loss_scaling": _in_float16(_SCALE),
        "float16_log_of_softmax": _in_float16(log_of_softmax=True),
        "temperature_2": _temperature(2.0),
        "temperature_10": _temperature(10.0),
        "temperature_2_without_square": _temperature(2.0, squared=False),
        "temperature_10_without_square": _temperature(10.0, squared=False),
        # The reduction.
        "mean_over_vocabulary": {"reduce": formulas.mean_over_vocabulary},
        "batchmean_over_rows": {
            "reduce": lambda values, weights, _: formulas.mean_over_rows(values, weights)
        },
        "sum": {"reduce": lambda values, weights, _: formulas.total(values, weights)},
        # The optimizer.
        "sgd": {"optimizer": {"name": "sgd", "learning_rate": 0.1}},
        "adam_large_epsilon": {"optimizer": {"epsilon": 1e-3}},
        "learning_rate_tenth": {"rate": 0.1},
        "learning_rate_tenfold": {"rate": 10.0},
        "no_clipping": {"optimizer": {"clip_norm": 0.0}},
        "clip_by_small_norm": {"optimizer": {"clip_norm": 0.01}},
        "clip_by_value": {"optimizer": {"clip_norm": 0.0}, "clip_value": 1e-3},
        "no_weight_decay": {"optimizer": {"weight_decay": 0.0}},
        "large_weight_decay": {"optimizer": {"weight_decay": 10.0}},
        # What is read and what is trained.
        "labels_shifted": {"sees": NEXT},
        "hard_labels": {"sees": TOP_CLASS},
        "data_labels": {"sees": LABELS},
        "wrong_exit_layer": {"sees": OTHER_LAYER},
        "another_sequence": {"sees": OTHER_ROW},
        "padding_counted": {"sees": PADDED},
        "head_trained": {"learns": HEAD},
        # By way of what the loss learns from alone; what the student reads of the teacher passes no
        # gradient on.
        "teacher_not_detached": {"formula": formulas.attached, "learns": TEACHER},
    }
)
# A measure in place of `acceptance`, a temperature in place of the row's.
MEASURING: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "measured_by_exact_match": {"measure": "acceptance_exact_match"},
        "measured_by_greedy_draft": {"measure": "acceptance_greedy_draft"},
        "measured_by_threshold": {"measure": "acceptance_typical"},
        "measured_greedily": {"measure": "greedy_match", "temperature": 0.0},
        "measured_at_temperature_0": {"temperature": 0.0},
        "measured_at_temperature_20": {"temperature": 20.0},
        "measured_on_own_text": {"measure": "acceptance_own_text", "temperature": 1.0},
        "counted_a_call": {"measure": "accepted_a_call", "temperature": 1.0},
        "counted_at_position_1": {"measure": "acceptance_at_1", "temperature": 1.0},
        "counted_at_position_4": {"measure": "acceptance_at_4", "temperature": 1.0},
    }
)
_OF_KANGAROO = ("wrong_exit_layer", "another_sequence", "head_trained")


def read(text: str, config: Mapping) -> tuple[Cause, ...]:
    """The causes in `text`, by commas, after the baseline.

    Raises:
      ValueError: one is unknown or repeated, joins what can't be joined, or is none of `config`'s
        students.
    """
    if not isinstance(text, str):
        raise ValueError(f"`config.causes` must be names by commas, got {text!r}")
    causes = [_cause(name.strip()) for name in text.split(",")]
    names = [cause.text for cause in causes]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"`config.causes` has {name!r} twice")
    if BASELINE not in names:
        causes = [_cause(BASELINE), *causes]
    causes.sort(key=lambda cause: cause.text != BASELINE)
    for cause in causes:
        _check(cause, config)
    return tuple(causes)


def _check(cause, config):
    told, student = f"`config.causes`: {cause.text}", config["student"]
    if student["kind"] != "kangaroo" and set(cause.training.split("+")) & set(_OF_KANGAROO):
        raise ValueError(
            f"{told} is about the teacher's hidden state or head, which a student of kind {student['kind']} does not "
            f"read; leave it out, or set `config.student.kind` to kangaroo"
        )
    if cause.change.sees == OTHER_LAYER and config["teacher"]["depth"] < 2:
        raise ValueError(f"{told}: `config.teacher.depth` = 1 has no other layer")
    if cause.change.sees == OTHER_ROW and student["batch_size"] < 2:
        raise ValueError(f"{told}: `config.student.batch_size` = 1 has no other sequence")
    optimizer = {"name": student["optimizer"]["name"], **cause.change.optimizer}
    if optimizer["name"] == "sgd" and "epsilon" in optimizer:
        raise ValueError(f"{told}: SGD has no epsilon")
    known = config["evaluation"]["temperatures"]
    # All are compared at temperature 1.
    for needed in {1.0, cause.measuring.get("temperature", 1.0)}.difference(known):
        raise ValueError(
            f"{told} needs {needed:g} among `config.evaluation.temperatures`, which are "
            f"{', '.join(f'{t:g}' for t in known)}"
        )


def _cause(text):
    training, measuring = {}, {}
    names = text.split("+")
    for name in names:
        if name not in TRAINING and name not in MEASURING:
            near = difflib.get_close_matches(name, [*TRAINING, *MEASURING], n=1)
            mend = (
                f"did you mean `{near[0]}`?"
                if near
                else f"known: {', '.join([*TRAINING, *MEASURING])}"
            )
            raise ValueError(f"`config.causes`: there is no cause {name!r}; {mend}")
        into, fields = (
            (training, TRAINING[name]) if name in TRAINING else (measuring, MEASURING[name])
        )
        _join(into, fields, text)
    trained = "+".join(name for name in names if name in TRAINING) or BASELINE
    return Cause(text, trained, Change(**training), measuring)


def _join(into, fields, text):
    for field, value in fields.items():
        if field == "optimizer" and not set(value) & set(into.get(field, {})):
            value = {**into.get(field, {}), **value}
        elif field in into:
            raise ValueError(f"`config.causes`: {text!r} changes the {field} twice")
        into[field] = value
