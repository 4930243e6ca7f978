"""The ways in which a loss may take logits, labels and a mask, the likeliest first."""

import inspect
import re
import sys
from collections.abc import Callable, Iterator

from jaxdiv.audit.calls import CallError, Foreign, Probe
from jaxdiv.audit.inputs import random_batch

LEADS = {"BLV": (2, 5), "NV": (6,), "V": ()}
_CLASSES = (11, 67, 263)  # more where a loss refuses few, as a top-50 does
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
    errors = []
    for probe in _probes(function, frameworks, axes):
        try:
            probe.value(random_batch(probe.lead, probe.classes).one())
        except CallError as error:
            errors.append(error)
            continue
        if probe.positional[:1] == ("teacher",):
            probe.notes.append(("argument_order", {}))
        if probe.lead != LEADS["BLV"]:
            probe.notes.append(("shape", {"shape": "[N, V]" if probe.lead else "[V]"}))
        probe.prepare()
        return probe
    raise errors[0] if errors else CallError("it takes no two arguments")


def _probes(function, frameworks, axes) -> Iterator[Probe]:
    conventions = _conventions(function)
    for classes in _CLASSES:
        for shape in (axes,) if axes else LEADS:
            for framework in frameworks:
                for positional, keywords in conventions:
                    masks = [("float32", False), ("bool", False), ("float32", True)]
                    for mask in masks if "mask" in keywords.values() else masks[:1]:
                        call = positional, keywords, *mask
                        yield Probe(function, framework, LEADS[shape], classes, *call)


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
    if len(plain) >= 2:
        first, second, keywords = plain[0].name, plain[1].name, _keywords(by_name)
        if _LABELS.match(second) and "labels" not in keywords.values():
            return [(("student", role), keywords) for role in _target_roles(second)]
        if _TEACHER.search(first) and not _TEACHER.search(second):
            return [(both[::-1], keywords), (both, keywords)]
        return [(both, keywords), (("student", "labels"), keywords)]
    if any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return [(both, _keywords(by_name))]
    if not plain and not by_name:
        return []
    positional = ("student",) if plain else ()
    return [(positional, keywords) for keywords in _logits_by_name(by_name, alone=not plain)]


def _target_roles(name):
    """Returns the roles that a parameter of a target's name may take, the likeliest first."""
    return ["teacher", "labels"] if "target" in name else ["labels", "teacher"]


def _logits_by_name(parameters: list[inspect.Parameter], alone: bool) -> list[dict]:
    """Returns keywords of logits that can be passed by name only.

    Args:
      parameters: those that are passed by name.
      alone: whether the student's logits are among them.

    Raises:
      CallError: if no name says which parameter takes the student's logits.
    """

    def first_match(pattern, parameters):
        names = [p.name for p in parameters if not (_MASK.search(p.name) or "temp" in p.name)]
        return next((name for name in names if pattern.search(name)), None)

    rest, student = list(parameters), {}
    if alone:
        name = first_match(_STUDENT, rest) or first_match(_LOGITS, rest)
        if name is None:
            names = ", ".join(p.name for p in rest)
            raise CallError(
                f"its parameters are keyword-only ({names}) and none is called student_logits or "
                "logits"
            )
        student, rest = {name: "student"}, [p for p in rest if p.name != name]
    teacher = first_match(_TEACHER, [p for p in rest if p.default in (p.empty, None)])
    keywords = student | _keywords([p for p in rest if p.name != teacher])
    if teacher is None:
        return [keywords]
    is_label = _LABELS.match(teacher) and "labels" not in keywords.values()
    roles = _target_roles(teacher) if is_label else ["teacher"]
    return [keywords | {teacher: role} for role in roles]


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
