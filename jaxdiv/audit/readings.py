"""How a side's logits can be read wrongly, and what each reading makes of a row."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxdiv.audit.forms import Roles, log_softmax

# (logits [..., V], temperature, the other side's logits) -> values [..., V]
Take = Callable[[np.ndarray, float, np.ndarray], np.ndarray]


class Reading(NamedTuple):
    """What stands for a side's probability and for its logarithm.

    Attributes:
      code: of its finding, empty if right.
      details: of the finding's message, beside the side.
      roles: how many of probability and logarithm are wrong, each in its own way.
      size: a number that the reading has, such as an epsilon, and `make` the reading of another.
    """

    code: str
    prob: Take
    log: Take
    details: tuple[tuple[str, object], ...] = ()
    size: float | None = None
    make: Callable[[float], "Reading"] | None = None
    roles: int = 1

    def resized(self, size: float) -> "Reading":
        return self if self.make is None else self.make(size)

    @property
    def clean(self) -> bool:
        return not self.code


def clean_log(x, temperature, other):
    return log_softmax(x / temperature)


def of_log(log: Take) -> tuple[Take, Take]:
    return lambda x, t, o: np.exp(log(x, t, o)), log


CLEAN = Reading("", *of_log(clean_log))


def softmax(x):
    return np.exp(log_softmax(x))


def _double_log(x, temperature, other):
    return log_softmax(softmax(x / temperature))


def double_after_log(x, temperature, other):
    return log_softmax(softmax(x) / temperature)


def _cold_log(x, temperature, other):
    return log_softmax(x)


def _raw(x, temperature, other):
    return x / temperature


def _raw_cold(x, temperature, other):
    return np.asarray(x, np.float64)


def _log_sigmoid(x, temperature, other):
    return -np.logaddexp(0, -x / temperature)


def exp_of(take: Take) -> Take:
    return lambda x, t, o: np.exp(take(x, t, o))


_PROBS = {
    "clean": exp_of(clean_log),
    "cold": exp_of(_cold_log),
    "double": exp_of(_double_log),
    "raw": _raw,
    "raw cold": _raw_cold,
    "exp": exp_of(_raw),
    "log": clean_log,
    "exp prob": exp_of(exp_of(clean_log)),
    "sigmoid": exp_of(_log_sigmoid),
}


_LOGS = {
    "clean": clean_log,
    "cold": _cold_log,
    "double": _double_log,
    "raw": _raw,
    "raw cold": _raw_cold,
    "prob": exp_of(clean_log),
    "sigmoid": _log_sigmoid,
}


_PAIR_CODES = {
    ("exp", "raw"): "log_softmax_missing",
    ("raw", "raw"): "softmax_missing",
    ("raw", "clean"): "softmax_missing",
    ("raw cold", "clean"): "softmax_missing",
    ("clean", "raw"): "log_softmax_missing",
    ("clean", "raw cold"): "log_softmax_missing",
    ("cold", "raw"): "log_softmax_missing",
    ("exp", "clean"): "softmax_missing",
    ("clean", "prob"): "log_missing",
    ("exp prob", "prob"): "log_missing",
    ("double", "double"): "double_softmax",
    ("double", "clean"): "double_softmax",
    ("clean", "double"): "double_softmax",
    ("log", "clean"): "exp_missing",
    ("log", "log"): "exp_missing",
    ("cold", "clean"): "temperature_in_part",
    ("clean", "cold"): "temperature_in_part",
    ("cold", "cold"): "temperature_one_side",
    ("sigmoid", "sigmoid"): "sigmoid",
    ("sigmoid", "clean"): "sigmoid",
    ("clean", "sigmoid"): "sigmoid",
}


def base_readings() -> list[Reading]:
    """Readings of each role apart, in which probability and logarithm may disagree."""
    found = []
    for (prob, log), code in _PAIR_CODES.items():
        take_log = _LOGS.get(log, clean_log)
        found.append(Reading(code, _PROBS[prob], take_log, roles=_deviating(prob, log)))
    named = set(_PAIR_CODES)
    for prob in _PROBS:
        for log in _LOGS:
            if (prob, log) not in named and (prob, log) != ("clean", "clean"):
                found.append(
                    Reading(
                        _code_of(prob, log), _PROBS[prob], _LOGS[log], roles=_deviating(prob, log)
                    )
                )
    return found


def _deviating(prob, log):
    consistent = prob == log or (prob, log) in (("exp", "raw"), ("exp prob", "prob"))
    return 1 if consistent else (prob != "clean") + (log != "clean")


def _code_of(prob, log):
    if "double" in (prob, log):
        return "double_softmax"
    if prob in ("raw", "raw cold", "exp"):
        return "softmax_missing"
    if log in ("raw", "raw cold"):
        return "log_softmax_missing"
    if prob == "log":
        return "exp_missing"
    if "prob" in (log, prob.removeprefix("exp ")):
        return "log_missing"
    return "sigmoid" if "sigmoid" in (prob, log) else "temperature_in_part"


def common_readings() -> list[Reading]:
    """Those that an author makes on both sides at once."""
    return [
        Reading("double_softmax", *of_log(_double_log)),
        Reading("double_softmax", *of_log(double_after_log)),
        Reading("log_softmax_missing", *of_log(_raw)),
        Reading("log_softmax_missing", exp_of(clean_log), _raw),
        Reading("softmax_missing", _raw, clean_log),
        Reading("log_missing", exp_of(clean_log), exp_of(clean_log)),
        Reading("exp_missing", clean_log, clean_log),
        Reading("sigmoid", *of_log(_log_sigmoid)),
        Reading("temperature_one_side", *of_log(_cold_log)),
        Reading("softmax_missing", _raw, _raw),
    ]


def roles_of(
    student, teacher, labels, readings: tuple[Reading, Reading], temperatures: tuple[float, float]
) -> Roles:
    """Roles of logits [..., V] under (teacher's, student's) readings and temperatures."""
    by_teacher, by_student = readings
    warm_t, warm_s = temperatures
    with np.errstate(all="ignore"):
        return Roles(
            p=by_teacher.prob(teacher, warm_t, student),
            q=by_student.prob(student, warm_s, teacher),
            log_p=by_teacher.log(teacher, warm_t, student),
            log_q=by_student.log(student, warm_s, teacher),
            teacher=teacher / warm_t,
            student=student / warm_s,
            labels=labels,
        )
