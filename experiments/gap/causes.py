"""The causes: mistakes and choices in training, each a small change to a sound one, and choices in
measuring.

A cause is written as a name of `TRAINING` or `MEASURING`, or several joined by `+`.
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import jax

from experiments.gap import formulas
from experiments.gap.formulas import LOSSES
from jaxdiv.models import KANGAROO
from jaxdiv.schema import ACCEPTANCE_BY_RULE, EXACT_MATCH, GREEDY_DRAFT, GREEDY_MATCH, TYPICAL

BASELINE = "baseline"
# What is trained: the student alone, or the head or the teacher beside it.
STUDENT, HEAD, TEACHER = "student", "head", "teacher"
# How a student sees a batch and the teacher's pass over it: as they are, or by mistake.
UNCHANGED = "unchanged"
NEXT_TOKEN = "next_token"
OTHER_LAYER = "other_layer"
OTHER_ROW = "other_row"
PADDED = "padded"
TOP_CLASS = "top_class"
LABELS = "labels"


@dataclasses.dataclass(frozen=True)
class Change:
    """A change to a student's training, whose defaults are the sound one.

    Attributes:
      formula: (student logits, teacher logits, `ce` or `kl`) -> one value a token.
      reduce: (values, weights, vocab_size) -> scalar.
      optimizer: settings that replace the config's.
      rate: factor of the learning rate.
      clip_value: bound of each number of the gradient; 0 for none.
      view: how the student sees a batch, from `UNCHANGED` to `LABELS`.
      trains: what is trained, `STUDENT`, or `HEAD` or `TEACHER` beside it.
    """

    formula: formulas.Formula = formulas.right
    reduce: Callable[[jax.Array, jax.Array, int], jax.Array] = formulas.mean
    optimizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rate: float = 1.0
    clip_value: float = 0.0
    view: str = UNCHANGED
    trains: str = STUDENT


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

    def variant(self, loss: str) -> str:
        """Returns the name in curves of the loss's students under the cause."""
        return f"{self.training}:{loss}"


def variants(causes: Iterable[Cause]) -> dict[str, tuple[Change, str]]:
    """Returns the change and the loss of all students by their name, the baseline's first."""
    return {cause.variant(loss): (cause.change, loss) for cause in causes for loss in LOSSES}


def _temperature(value, squared=True):
    return {"formula": functools.partial(formulas.right, temperature=value, squared=squared)}


def _in_float16(scale=1.0, **options):
    return {
        "formula": functools.partial(formulas.in_float16, scale=scale, **options),
        "reduce": functools.partial(formulas.mean_in_float16, scale=scale),
    }


TRAINING: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        BASELINE: {},
        # The formula.
        "softmax_twice": {"formula": formulas.softmax_twice},
        "without_log": {"formula": formulas.without_log},
        "arguments_swapped": {"formula": formulas.arguments_swapped},
        "float16": _in_float16(),
        "float16_loss_scaling": _in_float16(2.0**10),
        "float16_log_of_softmax": _in_float16(log_of_softmax=True),
        "temperature_2": _temperature(2.0),
        "temperature_10": _temperature(10.0),
        "temperature_2_without_square": _temperature(2.0, squared=False),
        "temperature_10_without_square": _temperature(10.0, squared=False),
        # The reduction.
        "mean_over_vocabulary": {"reduce": formulas.mean_over_vocabulary},
        "batchmean_over_rows": {"reduce": formulas.mean_over_rows},
        "sum": {"reduce": formulas.total},
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
        "untrained": {"rate": 0.0},
        "labels_shifted": {"view": NEXT_TOKEN},
        "hard_labels": {"view": TOP_CLASS},
        "data_labels": {"view": LABELS},
        "padding_counted": {"view": PADDED},
        # The teacher learns through the target alone: what the student reads of it passes no
        # gradient on.
        "teacher_not_detached": {"formula": formulas.attached, "trains": TEACHER},
        # What Kangaroo students read of the teacher.
        "wrong_exit_layer": {"view": OTHER_LAYER},
        "another_sequence": {"view": OTHER_ROW},
        "head_trained": {"trains": HEAD},
    }
)
# Measures on text that the teacher wrote, by their names in gap.csv.
OWN_TEXT, AT_1, AT_4 = "acceptance_own_text", "acceptance_at_1", "acceptance_at_4"
ACCEPTED_PER_CALL = "accepted_a_call"  # tokens a call without the one that the target adds
# A measure that replaces acceptance, a temperature that replaces the row's.
MEASURING: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "measured_by_exact_match": {"measure": ACCEPTANCE_BY_RULE[EXACT_MATCH]},
        "measured_by_greedy_draft": {"measure": ACCEPTANCE_BY_RULE[GREEDY_DRAFT]},
        "measured_by_threshold": {"measure": ACCEPTANCE_BY_RULE[TYPICAL]},
        "measured_greedily": {"measure": GREEDY_MATCH, "temperature": 0.0},
        "measured_at_temperature_0": {"temperature": 0.0},
        "measured_at_temperature_20": {"temperature": 20.0},
        "measured_on_own_text": {"measure": OWN_TEXT, "temperature": 1.0},
        "counted_a_call": {"measure": ACCEPTED_PER_CALL, "temperature": 1.0},
        "counted_at_position_1": {"measure": AT_1, "temperature": 1.0},
        "counted_at_position_4": {"measure": AT_4, "temperature": 1.0},
    }
)
KANGAROO_ONLY = ("wrong_exit_layer", "another_sequence", "head_trained")


def read(text: str, config: Mapping) -> tuple[Cause, ...]:
    """Reads the causes in `text`, separated by commas; the baseline comes first.

    Raises:
      ValueError: a cause is unknown or repeated, joins what can't be joined, or needs what `config`
        lacks.
    """
    if not isinstance(text, str):
        raise ValueError(f"`config.causes` must be names separated by commas, got {text!r}")
    names = [name.strip() for name in text.split(",")]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"`config.causes` has {repeated[0]!r} twice")
    causes = tuple(_parse(name) for name in dict.fromkeys([BASELINE, *names]))
    for cause in causes:
        _check(cause, config)
    return causes


def _parse(text: str) -> Cause:
    training, measuring, names = {}, {}, text.split("+")
    for name in names:
        if name not in TRAINING and name not in MEASURING:
            every = [*TRAINING, *MEASURING]
            near = difflib.get_close_matches(name, every, n=1)
            remedy = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(every)}"
            raise ValueError(f"`config.causes`: there is no cause {name!r}; {remedy}")
        fields = training if name in TRAINING else measuring
        for field, value in {**TRAINING, **MEASURING}[name].items():
            if field == "optimizer" and not set(value) & set(fields.get(field, {})):
                value = {**fields.get(field, {}), **value}
            elif field in fields:
                raise ValueError(f"`config.causes`: {text!r} changes the {field} twice")
            fields[field] = value
    changed = "+".join(name for name in names if name in TRAINING) or BASELINE
    return Cause(text, changed, Change(**training), measuring)


def _check(cause: Cause, config: Mapping) -> None:
    prefix, student = f"`config.causes`: {cause.text}", config["student"]
    if student["kind"] != KANGAROO and set(cause.training.split("+")) & set(KANGAROO_ONLY):
        raise ValueError(
            f"{prefix} is about the teacher's hidden state or head, which a student of kind "
            f"{student['kind']} does not read; leave it out, or set `config.student.kind` to "
            "kangaroo"
        )
    if cause.change.view == OTHER_LAYER and config["teacher"]["depth"] < 2:
        raise ValueError(f"{prefix}: `config.teacher.depth` = 1 has no other layer")
    if cause.change.view == OTHER_ROW and student["batch_size"] < 2:
        raise ValueError(f"{prefix}: `config.student.batch_size` = 1 has no other sequence")
    optimizer = {"name": student["optimizer"]["name"], **cause.change.optimizer}
    if optimizer["name"] == "sgd" and "epsilon" in optimizer:
        raise ValueError(f"{prefix}: SGD has no epsilon")
    temperatures = config["evaluation"]["temperatures"]
    # All causes are compared at temperature 1.
    for needed in {1.0, cause.measuring.get("temperature", 1.0)}.difference(temperatures):
        raise ValueError(
            f"{prefix} needs {needed:g} among `config.evaluation.temperatures`, which are "
            f"{', '.join(f'{t:g}' for t in temperatures)}"
        )
