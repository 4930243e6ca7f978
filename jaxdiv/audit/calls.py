"""Calls of an unknown loss: values and gradients, whatever framework it is written in."""

import contextlib
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiv.audit.inputs import Batch, random_batch

CHUNK = 64  # inputs of one compiled call


class CallError(Exception):
    """The audited function failed; the message is its own first line."""


@dataclass(frozen=True)
class Foreign:
    """A loss that takes arrays of another framework, from `numpy_loss` or `torch_loss`."""

    function: Callable
    framework: str


def numpy_loss(function: Callable) -> Foreign:
    """Adapts a NumPy function (arrays in, array or number out); its gradients are unknown."""
    return Foreign(function, "numpy")


def torch_loss(function: Callable) -> Foreign:
    """Adapts a PyTorch function (tensors in, tensor out); gradients come from its autograd."""
    return Foreign(function, "torch")


def name_of(function: Callable) -> str:
    function = function.function if isinstance(function, Foreign) else function
    return getattr(function, "__name__", None) or type(function).__name__


@dataclass
class Probe:
    """A loss with one way to call it.

    Attributes:
      lead: the axes before V that it takes: (B, L), (N,) or ().
      positional: the roles of its first parameters: `student`, `teacher` or `labels`.
      keywords: parameters passed by name, each with a role, `mask` or a number.
      mask_keeps: whether a mask's 1 means that a position counts.
      notes: the codes and details of notes on the call.
    """

    function: Callable
    framework: str
    lead: tuple[int, ...]
    classes: int
    positional: tuple[str, ...]
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
        return name_of(self.function)

    def takes(self, role: str) -> bool:
        return role in (*self.positional, *self.keywords.values())

    @property
    def mask_drops(self) -> bool:
        """True if the mask's name says that 1 is left out."""
        named = (key for key, role in self.keywords.items() if role == "mask")
        return any(re.search(r"pad|ignore", key, re.IGNORECASE) for key in named)

    def prepare(self) -> None:
        """Compiles the loss if JAX can trace it, and checks whether it has gradients."""
        if self.takes("mask"):
            self.mask_keeps = self._sees_student(1.0) or not self._sees_student(0.0)
        self.differentiable = self.framework != "numpy"
        if self.framework == "jax":
            self.compiled = jax.jit(jax.vmap(self._value_and_gradients))
            self.jitted = jax.jit(self._call)
        while self.differentiable:
            try:
                self.gradients(random_batch(self.lead, self.classes))
                return
            except CallError as error:
                if self.compiled is None:
                    self.differentiable = False
                    return
                self.compiled = self.jitted = None
                self.notes.append(("eager", {"error": str(error)[:90]}))

    def _sees_student(self, mask: float) -> bool:
        """Returns whether the student changes the value under a mask of equal entries."""
        one, other = (random_batch(self.lead, self.classes, seed=seed).one() for seed in (0, 1))
        one = one._replace(mask=np.full_like(one.mask, mask))
        try:
            first, second = self.value(one), self.value(one._replace(student=other.student))
        except CallError:
            return False
        moved = np.abs(first - second) > 1e-5 * np.abs(first)
        return bool(np.all(np.isfinite(first)) and np.any(moved))

    def _call(self, student: Any, teacher: Any, labels: Any, mask: Any) -> Any:
        arrays = {"student": student, "teacher": teacher, "labels": labels, "mask": mask}
        keywords = {
            key: arrays[role] if isinstance(role, str) else role
            for key, role in self.keywords.items()
        }
        output = self.function(*(arrays[role] for role in self.positional), **keywords)
        if isinstance(output, (tuple, list, dict)):
            self.tuple_output = True
            parts = output if isinstance(output, dict) else dict(enumerate(output))
            output = parts["loss"] if "loss" in parts else next(iter(parts.values()))
        return output

    def _value_and_gradients(self, student, teacher, labels, mask):
        def total(student, teacher):
            output = self._call(student, teacher, labels, mask)
            return jnp.sum(output), output

        gradients, output = jax.grad(total, argnums=(0, 1), has_aux=True)(student, teacher)
        return output, *gradients

    def values(self, inputs: Batch, dtype=np.float32) -> np.ndarray:
        """Returns float64 values [M, *out].

        Raises:
          CallError: if the function fails; failures are never turned into NaN.
        """
        if self._is_compiled_for(inputs) and dtype == np.float32:
            return self._in_chunks(inputs)[0]
        return np.stack([self.value(inputs.one(i), dtype) for i in range(len(inputs.labels))])

    def value(self, one: Batch, dtype=np.float32, eager: bool = False) -> np.ndarray:
        call = self._call if eager or self.jitted is None else self.jitted
        with _failures_as_call_errors():
            output = call(*self._convert(one, dtype))
            if hasattr(output, "detach"):
                output = output.detach().double().cpu().numpy()
            output = np.asarray(output)
            if output.dtype == object:
                raise TypeError(f"the loss gave {output!r}, not numbers"[:100])
            return output.astype(np.float64)

    def gradients(self, inputs: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Returns the gradients of the output's sum by student and teacher, each [M, *lead, V]."""
        if self._is_compiled_for(inputs):
            return self._in_chunks(inputs)[1:]
        by_torch = self.framework == "torch"
        gradient = self._torch_gradients if by_torch else self._value_and_gradients
        with _failures_as_call_errors():
            rows = [
                gradient(*self._convert(inputs.one(i), np.float32))[-2:]
                for i in range(len(inputs.labels))
            ]
            return tuple(np.stack(side).astype(np.float64) for side in zip(*rows, strict=True))

    def _torch_gradients(self, student, teacher, labels, mask):
        torch = sys.modules["torch"]
        sides = [side.clone().requires_grad_(True) for side in (student, teacher)]
        with torch.enable_grad():
            output = self._call(*sides, labels, mask).sum()
        gradients = None, None
        if output.requires_grad:
            gradients = torch.autograd.grad(output, sides, allow_unused=True)
        pairs = zip(gradients, sides, strict=True)
        return [(torch.zeros_like(side) if g is None else g).double().numpy() for g, side in pairs]

    def _is_compiled_for(self, inputs):
        return self.compiled is not None and inputs.student.shape[1:] == (*self.lead, self.classes)

    def _in_chunks(self, inputs: Batch) -> tuple[np.ndarray, ...]:
        """Returns values and both gradients by compiled calls of one shape."""
        count, chunks = len(inputs.labels), []
        for start in range(0, count, CHUNK):
            some = inputs.one(np.minimum(np.arange(start, start + CHUNK), count - 1))
            with _failures_as_call_errors():
                arrays = self.compiled(*self._convert(some, np.float32))
                chunks.append([np.asarray(part, np.float64) for part in arrays])
        return tuple(np.concatenate(parts)[:count] for parts in zip(*chunks, strict=True))

    def _convert(self, one: Batch, dtype: type) -> list:
        """Returns the input as arrays of the function's framework."""
        mask = one.mask if self.mask_keeps else 1 - one.mask
        mask = mask[..., None] if self.mask_column else mask
        logits = one.student.astype(dtype), one.teacher.astype(dtype)
        arrays = [*logits, one.labels, mask.astype(self.mask_type)]
        if self.framework == "jax":
            return [jnp.asarray(array) for array in arrays]
        if self.framework == "torch":
            arrays[2] = arrays[2].astype(np.int64)
            tensor = sys.modules["torch"].from_numpy
            return [tensor(np.array(array)) for array in arrays]
        return [np.array(array) for array in arrays]


@contextlib.contextmanager
def _failures_as_call_errors() -> Iterator[None]:
    """Lets the audited function warn, promote and give NaN; its exceptions become CallError."""
    with (
        warnings.catch_warnings(action="ignore"),
        np.errstate(all="ignore"),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.debug_nans(False),
    ):
        try:
            yield
        except Exception as error:
            line = next(iter(str(error).strip().splitlines()), "")
            raise CallError(f"{type(error).__name__}: {line}"[:200]) from error
