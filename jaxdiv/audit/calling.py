"""How a loss can be called: framework, shape of the logits, and what its parameters take."""

import inspect
import re
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiv.audit.inputs import Batch, random_batch, repeated
from jaxdiv.audit.probe import CallError, Foreign, Probe, first_line

_LABELS = re.compile(
    r"^(labels?|label_ids|target_ids|token_ids|tokens|targets?|y|y_true|ids|hard_labels?|gold)$"
)
_MASK = re.compile(r"mask|valid|pad|weights?$|keep|ignore", re.IGNORECASE)
_TEMPERATURE = re.compile(r"^(t|tau|temp|temperature)$", re.IGNORECASE)
_TEACHER = re.compile(r"teacher|target|reference", re.IGNORECASE)
_STUDENT = re.compile(r"student|draft|pred|input(?!_ids)", re.IGNORECASE)
_LOGITS = re.compile(r"^(logits?|x|outputs?|s|q)$", re.IGNORECASE)


def open_probe(function: Callable, axes: str | None = None) -> Probe:
    """The first way to call `function` that works: framework, shape, arguments.

    Args:
      function: a JAX or NumPy function, or what `numpy_loss` or `torch_loss` give.
      axes: `BLV`, `NV` or `V` where only one shape of logits is meant.

    Raises:
      CallError: if none works, with the error of the plainest.
    """
    framework = function.framework if isinstance(function, Foreign) else None
    function = function.function if isinstance(function, Foreign) else function
    if framework == "torch" and "torch" not in sys.modules:
        import torch  # noqa: F401
    frameworks = (
        (framework,)
        if framework
        else ("jax", "numpy", *(("torch",) if "torch" in sys.modules else ()))
    )
    errors = []
    for probe in _ways(function, frameworks, axes):
        try:
            probe.value(Batch(*(part[0] for part in random_batch(probe.lead, probe.classes))))
        except CallError as error:
            errors.append(error)
            continue
        _settle(probe)
        return probe
    raise errors[0] if errors else CallError("it takes no two arguments")


LEADS = {"BLV": (2, 5), "NV": (6,), "V": ()}


def _ways(function, frameworks, axes):
    sizes = (11, 67, 263)
    for classes in sizes:
        for shape in (axes,) if axes else LEADS:
            for framework in frameworks:
                for first, second, keywords in _conventions(function):
                    masks = [("float32", False), ("bool", False), ("float32", True)]
                    for mask_type, column in masks if "mask" in keywords.values() else masks[:1]:
                        yield Probe(
                            function,
                            framework,
                            LEADS[shape],
                            classes,
                            first,
                            second,
                            keywords,
                            mask_type,
                            column,
                        )


def _conventions(function):
    """(first, second, keywords) in the order in which they are tried."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return [("student", "teacher", {})]
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    named = [
        p
        for p in parameters
        if p not in plain[:2] and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if len(plain) >= 2:
        return _positional(plain[0].name, plain[1].name, _keywords(named))
    if any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return [("student", "teacher", _keywords(named))]
    first = "student" if plain else None
    if first is None and not named:
        return []
    return [(first, None, keywords) for keywords in _by_name(named, alone=first is None)]


def _positional(first, second, keywords):
    if _LABELS.match(second) and "labels" not in keywords.values():
        return [("student", role, keywords) for role in _target_roles(second)]
    if _TEACHER.search(first) and not _TEACHER.search(second):
        return [("teacher", "student", keywords), ("student", "teacher", keywords)]
    return [("student", "teacher", keywords), ("student", "labels", keywords)]


def _target_roles(name):
    """What a parameter of a target's name may take, the likeliest first."""
    return ["teacher", "labels"] if "target" in name else ["labels", "teacher"]


def _by_name(parameters, alone):
    """Keywords of logits that can be passed by name only; `alone`: the student's are among them.

    Raises:
      CallError: if no name says which the student's are.
    """
    left, student = list(parameters), {}
    if alone:
        name = _first_called(_STUDENT, left) or _first_called(_LOGITS, left)
        if name is None:
            names = ", ".join(p.name for p in left)
            raise CallError(
                f"its parameters are keyword-only ({names}) and none is called student_logits or logits"
            )
        student = {name: "student"}
        left = [p for p in left if p.name != name]
    given = [p for p in left if p.default is p.empty or p.default is None]
    teacher = _first_called(_TEACHER, given)
    keywords = student | _keywords([p for p in left if p.name != teacher])
    if teacher is None:
        return [keywords]
    roles = (
        _target_roles(teacher)
        if _LABELS.match(teacher) and "labels" not in keywords.values()
        else ["teacher"]
    )
    return [keywords | {teacher: role} for role in roles]


def _first_called(pattern, parameters):
    """The first name of logits that has `pattern` in it."""
    names = (p.name for p in parameters if not (_MASK.search(p.name) or "temp" in p.name))
    return next((name for name in names if pattern.search(name)), None)


def _keywords(parameters):
    found = {}
    for parameter in parameters:
        name, required = parameter.name, parameter.default is parameter.empty
        if _LABELS.match(name) and "labels" not in found.values():
            found[name] = "labels"
        elif (
            _MASK.search(name)
            and "mask" not in found.values()
            and (required or parameter.default is None)
        ):
            found[name] = "mask"
        elif required and _TEMPERATURE.match(name):
            found[name] = 2.0
        elif required:
            found[name] = 0.5
    return found


def _settle(probe):
    """Compiles it if it can be traced, and finds out whether gradients can be had."""
    one = random_batch(probe.lead, probe.classes)
    if probe.first == "teacher":
        probe.notes.append(("argument_order", {}))
    if probe.lead != LEADS["BLV"]:
        probe.notes.append(("shape", {"shape": "[N, V]" if probe.lead else "[V]"}))
    if probe.takes_mask:
        probe.mask_keeps = _keeps(probe)
    if probe.framework == "numpy":
        probe.differentiable = False
        return
    if probe.framework == "jax":
        error = _compile(probe, one)
        if error is None:
            return
        probe.notes.append(("eager", {"error": error}))
    try:
        probe.gradients(one)
    except CallError:
        probe.differentiable = False


def _keeps(probe):
    """Whether the loss sees the student under a mask of ones; False if under zeros alone."""
    one, other = (
        Batch(*(part[0] for part in random_batch(probe.lead, probe.classes, seed=seed)))
        for seed in (0, 1)
    )

    def sees(mask):
        full = np.full_like(one.mask, mask)
        try:
            first, second = (
                probe.value(one._replace(student=side.student, mask=full)) for side in (one, other)
            )
        except CallError:
            return False
        return bool(
            np.all(np.isfinite(first)) and np.any(np.abs(first - second) > 1e-5 * np.abs(first))
        )

    return sees(1.0) or not sees(0.0)


def _compile(probe, one):
    def single(student, teacher, labels, mask):
        def summed(student, teacher):
            output = probe.call(student, teacher, labels, mask)
            return jnp.sum(output), output

        slopes, output = jax.grad(summed, argnums=(0, 1), has_aux=True)(student, teacher)
        return (output, *slopes)

    probe.compiled = jax.jit(jax.vmap(single))
    try:
        probe._compiled(repeated(one, 2))
    except Exception as error:
        probe.compiled = None
        return first_line(error)[:90]
    probe.jitted = jax.jit(probe.call)
    return None
