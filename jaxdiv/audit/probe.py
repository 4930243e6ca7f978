"""One interface to an unknown loss: values and gradients, whatever framework it is written in."""

import contextlib
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiv.audit.inputs import Batch

CHUNK = 64  # inputs of one compiled call
_DROPS = re.compile(r"pad|ignore", re.IGNORECASE)


class CallError(Exception):
    """The audited function failed; the first line says how."""


@dataclass(frozen=True)
class Foreign:
    """A loss that takes arrays of another framework; made by `numpy_loss` and `torch_loss`."""

    function: Callable
    framework: str

    @property
    def __name__(self) -> str:
        return _name(self.function)


def numpy_loss(function: Callable) -> Foreign:
    """Adapter of a NumPy function (arrays in, array or number out); its gradients can't be seen."""
    return Foreign(function, "numpy")


def torch_loss(function: Callable) -> Foreign:
    """Adapter of a PyTorch function (tensors in, tensor out); gradients come from its autograd."""
    return Foreign(function, "torch")


@dataclass
class Probe:
    """A loss that can be called.

    Attributes:
      lead: the axes before V that it takes: (B, L), (N,) or ().
      first, second: what its first two parameters take: `student`, `teacher` or `labels`; None if
        passed by name.
      keywords: what is passed by name: parameter -> `student`, `teacher`, `labels`, `mask`, or a
        number.
      mask_keeps: whether a mask's 1 means that a position counts.
      notes: how it had to be called, as (code, details).
    """

    function: Callable
    framework: str
    lead: tuple[int, ...]
    classes: int
    first: str | None
    second: str | None
    keywords: dict[str, object]
    mask_type: str = "float32"
    mask_column: bool = False
    mask_keeps: bool = True
    tuple_output: bool = False
    differentiable: bool = True
    compiled: Callable | None = None
    jitted: Callable | None = None
    notes: list = field(default_factory=list)

    @property
    def name(self) -> str:
        return _name(self.function)

    @property
    def takes_mask(self) -> bool:
        return "mask" in self.keywords.values()

    @property
    def takes_teacher(self) -> bool:
        return "teacher" in (self.first, self.second, *self.keywords.values())

    @property
    def takes_labels(self) -> bool:
        return "labels" in (self.first, self.second, *self.keywords.values())

    @property
    def mask_drops(self) -> bool:
        """Whether the mask's name says that 1 is left out."""
        return any(value == "mask" and _DROPS.search(key) for key, value in self.keywords.items())

    def call(self, student, teacher, labels, mask):
        """The function on arrays of its framework."""
        given = {"student": student, "teacher": teacher, "labels": labels, "mask": mask}
        positional = [given[role] for role in (self.first, self.second) if role]
        named = {
            key: given[role] if isinstance(role, str) else role
            for key, role in self.keywords.items()
        }
        output = self.function(*positional, **named)
        if isinstance(output, (tuple, list)):
            self.tuple_output = True
            output = output[0]
        if isinstance(output, dict):
            self.tuple_output = True
            output = output["loss"] if "loss" in output else next(iter(output.values()))
        return output

    def values(self, inputs: Batch, dtype=np.float32) -> np.ndarray:
        """[M, *out] in float64; NaN where it fails is not made: it raises CallError."""
        if (
            self.compiled is not None
            and dtype == np.float32
            and _shape(inputs) == (*self.lead, self.classes)
        ):
            return self._compiled(inputs)[0]
        return np.stack([self.value(one, dtype) for one in _each(inputs)])

    def gradients(self, inputs: Batch) -> tuple[np.ndarray, np.ndarray] | None:
        """Of the output's sum by student and teacher, each [M, *lead, V]; None if they can't be
        seen."""
        if not self.differentiable:
            return None
        if self.compiled is not None and _shape(inputs) == (*self.lead, self.classes):
            return self._compiled(inputs)[1:]
        found = [_gradient(self, one) for one in _each(inputs)]
        return tuple(np.stack(side) for side in zip(*found, strict=True))

    def value(self, one: Batch, dtype=np.float32, eager: bool = False) -> np.ndarray:
        with _lenient():
            try:
                call = self.call if eager or self.jitted is None else self.jitted
                output = call(*_converted(self, one, dtype))
                return _as_numpy(output)
            except Exception as error:
                raise CallError(first_line(error)) from error

    def _compiled(self, inputs):
        count = len(inputs.student)
        found = []
        for start in range(0, count, CHUNK):
            index = np.minimum(np.arange(start, start + CHUNK), count - 1)
            with _lenient():
                arrays = _converted(self, Batch(*(part[index] for part in inputs)), np.float32)
                found.append([np.asarray(part, np.float64) for part in self.compiled(*arrays)])
        return tuple(np.concatenate(parts)[:count] for parts in zip(*found, strict=True))


def _shape(inputs):
    return inputs.student.shape[1:]


def _each(inputs):
    for i in range(len(inputs.student)):
        yield Batch(*(part[i] for part in inputs))


def _name(function):
    function = function.function if isinstance(function, Foreign) else function
    return getattr(function, "__name__", None) or type(function).__name__


def first_line(error):
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {line}"[:200]


@contextlib.contextmanager
def _lenient():
    """The audited function's habits are its own: warnings, promotions and NaN don't stop it."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(np.errstate(all="ignore"))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        stack.enter_context(jax.debug_nans(False))
        yield


def _converted(probe, one, dtype):
    mask = one.mask if probe.mask_keeps else 1 - one.mask
    mask = mask[..., None] if probe.mask_column else mask
    parts = [
        one.student.astype(dtype),
        one.teacher.astype(dtype),
        one.labels,
        mask.astype(probe.mask_type),
    ]
    if probe.framework == "jax":
        return [jnp.asarray(part) for part in parts]
    if probe.framework == "torch":
        return _tensors(parts)
    return [np.array(part) for part in parts]


def _tensors(parts):
    torch = sys.modules["torch"]

    def tensor(part):
        part = np.ascontiguousarray(part)
        if part.dtype.name == "bfloat16":
            return torch.from_numpy(part.astype(np.float32)).to(torch.bfloat16)
        return torch.from_numpy(part.astype(np.int64) if part.dtype == np.int32 else part)

    return [tensor(part) for part in parts]


def _as_numpy(output):
    if hasattr(output, "detach"):
        output = output.detach()
        output = (output.double() if output.is_floating_point() else output).cpu().numpy()
    output = np.asarray(output)
    if output.dtype == object:
        raise TypeError(
            f"the loss gave {type(output.item() if output.ndim == 0 else output).__name__}, not numbers"
        )
    return output.astype(np.float64)


def _gradient(probe, one):
    with _lenient():
        try:
            arrays = _converted(probe, one, np.float32)
            if probe.framework == "torch":
                return _torch_gradient(probe, arrays)
            sides = jax.grad(lambda s, t: jnp.sum(probe.call(s, t, *arrays[2:])), argnums=(0, 1))(
                *arrays[:2]
            )
            return [np.asarray(side, np.float64) for side in sides]
        except Exception as error:
            raise CallError(first_line(error)) from error


def _torch_gradient(probe, arrays):
    torch = sys.modules["torch"]
    sides = [part.clone().requires_grad_(True) for part in arrays[:2]]
    with torch.enable_grad():
        output = probe.call(*sides, *arrays[2:]).sum()
    if not output.requires_grad:
        return [np.zeros(side.shape) for side in sides]
    found = torch.autograd.grad(output, sides, allow_unused=True)
    return [
        np.zeros(tuple(side.shape)) if slope is None else slope.double().numpy()
        for side, slope in zip(sides, found, strict=True)
    ]
