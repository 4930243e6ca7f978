"""The ways in which a loss may take logits, labels and a mask, the likeliest first."""

import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterator

from jaxdiv.audit.calls import CallError, Foreign, Probe
from jaxdiv.audit.inputs import random_batch

LEADS = {"BLV": (2, 5), "NV": (6,), "V": ()}
_CLASSES = (11, 67, 263)  # more where a loss refuses few, as a top-50 does
_MASKS = (("float32", False), ("bool", False), ("float32", True))  # type, and whether a column
_LABELS = re.compile(
    r"^(labels?|label_ids|target_ids|token_ids|tokens|targets?|y|y_true|ids|hard_labels?|gold)$"
)
_MASK = re.compile(r"mask|valid|pad|weights?$|keep|ignore", re.IGNORECASE)
_TEMPERATURE = re.compile(r"^(t|tau|temp|temperature)$", re.IGNORECASE)
_TEACHER = re.compile(r"teacher|target|reference", re.IGNORECASE)
_STUDENT = re.compile(r"student|draft|pred|input(?!_ids)", re.IGNORECASE)
_LOGITS = re.compile(r"^(logits?|x|outputs?|s|q)$", re.IGNORECASE)


def open_probe(function: Callable, axes: str | None = None) -> Probe:
    """Returns the first way to call `function` that works: framework, shape, arguments.

    Args:
      function: a JAX or NumPy function, or the result of `numpy_loss` or `torch_loss`.
      axes: `BLV`, `NV` or `V` if only one shape of logits is allowed.

    Raises:
      CallError: if none works, with the error of the plainest.
    """
    frameworks = ("jax", "numpy", *(("torch",) if "torch" in sys.modules else ()))
    if isinstance(function, Foreign):
        frameworks, function = (function.framework,), function.function
        if frameworks == ("torch",):
            import torch  # noqa: F401
    shapes, errors = (axes,) if axes else LEADS, []
    for classes, shape, framework, (positional, keywords), mask in itertools.product(
        _CLASSES, shapes, frameworks, _conventions(function), _MASKS
    ):
        if mask != _MASKS[0] and "mask" not in keywords.values():
            continue
        probe = Probe(function, framework, LEADS[shape], classes, positional, keywords, *mask)
        try:
            probe.value(random_batch(probe.lead, classes).one())
        except CallError as error:
            errors.append(error)
            continue
        if positional[:1] == ("teacher",):
            probe.notes.append(("argument_order", {}))
        if shape != "BLV":
            probe.notes.append(("shape", {"shape": "[N, V]" if probe.lead else "[V]"}))
        probe.prepare()
        return probe
    raise errors[0] if errors else CallError("it takes no two arguments")


def _conventions(function: Callable) -> list[tuple[tuple[str, ...], dict]]:
    """Returns (roles of positional parameters, keywords) in the order in which they are tried."""
    both = ("student", "teacher")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return [(both, {})]
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_name = [p for p in plain[2:] if p.kind == p.POSITIONAL_OR_KEYWORD]
    by_name += [p for p in parameters if p.kind == p.KEYWORD_ONLY]
    keywords = _keywords(by_name)
    if len(plain) >= 2:
        first, second = plain[0].name, plain[1].name
        if _LABELS.match(second) and "labels" not in keywords.values():
            return [(("student", role), keywords) for role in _target_roles(second)]
        if _TEACHER.search(first) and not _TEACHER.search(second):
            return [(both[::-1], keywords), (both, keywords)]
        return [(both, keywords), (("student", "labels"), keywords)]
    if any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return [(both, keywords)]
    positional = ("student",) if plain else ()
    return [(positional, keywords) for keywords in _logits_by_name(by_name, alone=not plain)]


def _target_roles(name):
    """Returns the roles that a parameter of a target's name may take, the likeliest first."""
    return ["teacher", "labels"] if "target" in name else ["labels", "teacher"]


def _logits_by_name(parameters: list[inspect.Parameter], alone: bool) -> Iterator[dict]:
    """Yields keywords of logits that can be passed by name only.

    Args:
      parameters: those that are passed by name.
      alone: whether the student's logits are among them.

    Raises:
      CallError: if no name says which parameter takes the student's logits.
    """
    if alone and not parameters:
        return
    logits = [p for p in parameters if not (_MASK.search(p.name) or "temp" in p.name)]
    keywords = {}
    if alone:
        names = [
            p.name for pattern in (_STUDENT, _LOGITS) for p in logits if pattern.search(p.name)
        ]
        if not names:
            raise CallError(
                f"its parameters are keyword-only ({', '.join(p.name for p in parameters)}) and "
                "none is called student_logits or logits"
            )
        keywords[names[0]] = "student"
    free = [p for p in logits if p.name not in keywords and p.default in (p.empty, None)]
    teacher = next((p.name for p in free if _TEACHER.search(p.name)), None)
    keywords |= _keywords([p for p in parameters if p.name not in keywords and p.name != teacher])
    if teacher is None:
        yield keywords
        return
    is_label = _LABELS.match(teacher) and "labels" not in keywords.values()
    for role in _target_roles(teacher) if is_label else ["teacher"]:
        yield keywords | {teacher: role}


def _keywords(parameters: list[inspect.Parameter]) -> dict[str, object]:
    """Returns a role or a number for each parameter that needs one."""
    roles = {}
    for parameter in parameters:
        name, required = parameter.name, parameter.default is parameter.empty
        optional = required or parameter.default is None
        if _LABELS.match(name) and "labels" not in roles.values():
            roles[name] = "labels"
        elif _MASK.search(name) and "mask" not in roles.values() and optional:
            roles[name] = "mask"
        elif required:
            roles[name] = 2.0 if _TEMPERATURE.match(name) else 0.5
    return roles
