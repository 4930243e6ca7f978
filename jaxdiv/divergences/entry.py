"""The registry's record of a loss and of its parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from jaxdiv.divergences.terms import Term


@dataclass(frozen=True)
class Parameter:
    """A number that a loss takes, in an interval that is open unless an end is included."""

    default: float
    low: float
    high: float
    low_included: bool = False
    high_included: bool = False
    whole: bool = False

    def allows(self, value: float) -> bool:
        at_low = self.low_included and value == self.low
        at_high = self.high_included and value == self.high
        inside = self.low < value < self.high or at_low or at_high
        return inside and (not self.whole or value == int(value))

    @property
    def interval(self) -> str:
        opening, closing = "[" if self.low_included else "(", "]" if self.high_included else ")"
        whole = ", a whole number" if self.whole else ""
        return f"{opening}{self.low:g}, {self.high:g}{closing}{whole}"


@dataclass(frozen=True)
class Entry:
    """One loss.

    Attributes:
      function: the public function of `jaxdiv`.
      aliases: shorter names.
      formula: the loss in text, p the teacher and q the student.
      source: the paper, with its equation or section if it has one.
      range: the values that it can take.
      temperature_power: the power of T that keeps the gradient's size at a distillation temperature
        T; 0 for a loss that stays at T = 1.
      symmetric: whether student and teacher can change places.
      target: what the function compares the student with: `logits`, `labels` or nothing (``).
      coarsens: whether classes may be summed before the loss, as a top-k target sums its tail.
      parameters: the loss's parameters by name.
      parts: a function that returns the parts of a loss that scale differently, and the power of T
        of each.
      term: the term of an f-divergence, made from its parameters.
      acceptance: of a loss on the chance that drafts are accepted, the function of logits
        [..., K+1], the last class being all that the student can't draft; it returns what the
        function or that of `parts` does. None for other losses.
      mirror: the loss (weight, name, parameters) with student and teacher exchanged, made from its
        parameters; None if the registry has none.
    """

    function: Callable
    aliases: tuple[str, ...]
    formula: str
    source: str
    range: str = "[0, ∞]"
    temperature_power: int = 2
    symmetric: str = "no"
    target: str = "logits"
    coarsens: bool = True
    parameters: Mapping[str, Parameter] = field(default_factory=lambda: MappingProxyType({}))
    parts: tuple[Callable, tuple[int, ...]] | None = None
    term: Callable[..., Term] | None = None
    acceptance: Callable | None = None
    mirror: Callable[..., tuple[float, str, dict[str, float]] | None] = lambda **_: None

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def defaults(self) -> dict[str, float]:
        return {name: parameter.default for name, parameter in self.parameters.items()}
