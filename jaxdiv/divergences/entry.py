"""What the registry says of a loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from jaxdiv.divergences.terms import Term


@dataclass(frozen=True)
class Parameter:
    """A number that a loss takes, in an interval that is closed at its ends only where said."""

    default: float
    low: float
    high: float
    low_included: bool = False
    high_included: bool = False
    whole: bool = False

    def allows(self, value: float) -> bool:
        at_end = (self.low_included and value == self.low) or (
            self.high_included and value == self.high
        )
        return (self.low < value < self.high or at_end) and (not self.whole or value == int(value))

    @property
    def interval(self) -> str:
        ends = f"{'[' if self.low_included else '('}{self.low:g}, {self.high:g}{']' if self.high_included else ')'}"
        return f"{ends}, a whole number" if self.whole else ends


@dataclass(frozen=True)
class Entry:
    """One loss.

    Attributes:
      function: as in `jaxdiv`.
      aliases: shorter names.
      temperature_power: T to this power keeps the gradient's size under a distillation temperature;
        0: stays at T = 1.
      formula: with p the teacher, q the student.
      range: of the value.
      symmetric: whether student and teacher can change places.
      source: the paper, with its equation or section where there is one.
      target: what the function takes beside the student's logits: `logits`, `labels` or nothing
        (``).
      coarsens: whether classes can be summed to fewer before it, as a top-k target has them.
      parameters: by name.
      parts: where parts of a loss scale differently, a function that gives them, and each one's
        power.
      term: of an f-divergence, from its parameters.
      mirror: from its parameters, the loss (weight, name, parameters) that it is with student and
        teacher exchanged; None where there is none on the menu.
    """

    function: Callable
    aliases: tuple[str, ...]
    temperature_power: int
    formula: str
    range: str
    source: str
    symmetric: str = "no"
    target: str = "logits"
    coarsens: bool = True
    parameters: Mapping[str, Parameter] = field(default_factory=lambda: MappingProxyType({}))
    parts: tuple[Callable, tuple[int, ...]] | None = None
    term: Callable[..., Term] | None = None
    mirror: Callable[..., tuple[float, str, dict[str, float]] | None] = lambda **_: None

    @property
    def defaults(self) -> dict[str, float]:
        return {name: parameter.default for name, parameter in self.parameters.items()}
