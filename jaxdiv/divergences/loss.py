"""Losses from text: a name, a name with parameters, or a weighted sum of them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxdiv import targets
from jaxdiv.divergences import inputs
from jaxdiv.divergences.blocks import by_rows
from jaxdiv.divergences.entry import Entry
from jaxdiv.divergences.evaluate import LossInputs, evaluate
from jaxdiv.divergences.registry import ENTRIES, canonical

_NUMBER = r"\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?"
LONGEST = 10_000  # characters in a loss or in a list of losses
_PART = re.compile(
    rf"(?:(?P<weight>[+-]?(?:{_NUMBER}))\s*\*\s*)?(?P<name>[A-Za-z_]\w*)\s*(?:\((?P<inside>[^()]*)\))?",
    re.ASCII,
)
_PARAMETER = re.compile(
    rf"(?P<key>[A-Za-z_]\w*)\s*=\s*(?P<value>[+-]?(?:{_NUMBER}|inf|nan))", re.ASCII
)
_PLUS = re.compile(r"\s*\+\s*")
# Beyond these float32 may hold a weight or a temperature, but not its product with a loss.
WEIGHTS = (1e-30, 1e30)
TEMPERATURES = (1e-6, 1e6)


@dataclass(frozen=True)
class Part:
    """One summand weight * name(**parameters): the full name, parameters as sorted pairs."""

    weight: float
    name: str
    parameters: tuple[tuple[str, float], ...]

    @property
    def entry(self) -> Entry:
        return ENTRIES[self.name]

    @property
    def all_parameters(self) -> dict[str, float]:
        """Returns the parameters of the text, and the others at their defaults."""
        return self.entry.defaults | dict(self.parameters)


@dataclass(frozen=True)
class Loss:
    """A weighted sum of divergences; hashable, made by `get`.

    Attributes:
      text: the loss as it was written.
      parts: the summands.
    """

    text: str
    parts: tuple[Part, ...]

    @property
    def needs_labels(self) -> bool:
        return any(part.entry.target == "labels" for part in self.parts)

    @property
    def is_of_acceptance(self) -> bool:
        """True if a part needs the true probabilities of a `Restricted` teacher."""
        return any(part.entry.acceptance is not None for part in self.parts)

    def __call__(
        self,
        student_logits,
        teacher,
        *,
        labels=None,
        temperature: float = 1.0,
        vocab_size: int | None = None,
        axis: int = -1,
        where=None,
    ) -> jax.Array:
        """Computes one value a row.

        Args:
          student_logits: [..., V].
          teacher: a constant: logits or log-probabilities [..., V], or a `Labels`, `TopK`,
            `Restricted` or `Samples` of `targets`; None if no part needs it.
          labels: [...] integers, for losses on data labels; a teacher of `Labels` brings its own.
          temperature: T in [1e-6, 1e6], a constant that divides both sides' logits. The factor T²
            (T where the gradient would grow otherwise) keeps the gradient's size. Losses on data
            labels (`ce_data`) stay at T = 1; a teacher of `Labels` is at T as any other. A traced T
            is clipped to that range, and NaN below 0.
          vocab_size: the number of classes that exist on both sides; needed where their padded
            sizes differ.
          axis: the axis of the classes in the logits.
          where: classes that exist, broadcast to the logits.

        Returns:
          [...], float32 at least.

        Raises:
          ValueError: if teacher or labels are missing, the temperature is out of its range or
            differentiated, a vocabulary is smaller than `vocab_size`, or the loss can't be
            computed from this kind of teacher.
        """
        if isinstance(teacher, targets.Labels) and labels is None:
            labels = teacher.classes
        if self.needs_labels and labels is None:
            raise ValueError(f"`{self.text}` needs `labels`, got None.")
        temperature = _check_temperature(temperature)
        if teacher is None:
            if any(part.entry.target == "logits" for part in self.parts):
                raise ValueError(f"`{self.text}` needs the teacher's logits, got None.")
            teacher = student_logits  # of the right shape; no part reads it
        student_logits = inputs.cut(student_logits, vocab_size, axis)
        rows, weighted_sum = {"axis": axis, "where": where}, _WeightedSum(self.parts, temperature)
        if isinstance(teacher, targets.Target):
            return weighted_sum(student_logits, teacher, labels, **rows)
        teacher = inputs.cut(teacher, vocab_size, axis)
        others = (teacher, labels) if self.needs_labels else (teacher,)
        return by_rows(weighted_sum, student_logits, *others, **rows)


def mirror(loss: Loss) -> Loss:
    """Returns the loss L' with L'(teacher, student) = L(student, teacher).

    Its gradient by its student is that of L by the teacher's logits.

    Raises:
      ValueError: if the registry has no mirror of a part.
    """
    parts = []
    for part in loss.parts:
        mirrored = part.entry.mirror(**part.all_parameters)
        if mirrored is None:
            raise ValueError(
                f"`{part.name}` has no mirror in the registry, so that its gradient by the teacher "
                "is not available."
            )
        weight, name, parameters = mirrored
        parts.append(Part(part.weight * weight, name, tuple(sorted(parameters.items()))))
    return Loss(text=f"mirror of {loss.text}", parts=tuple(parts))


def _check_temperature(temperature):
    low, high = TEMPERATURES
    if isinstance(temperature, jax.core.Tracer):
        temperature = _constant(temperature)
        return jnp.where(temperature < 0, jnp.nan, jnp.clip(temperature, low, high))
    if not low <= temperature <= high:
        raise ValueError(f"`temperature` must be in [{low:g}, {high:g}], got {temperature}.")
    return temperature


@jax.custom_jvp
def _constant(temperature):
    return temperature


@_constant.defjvp
def _constant_jvp(primals, tangents):
    raise ValueError(
        "`temperature` is a constant, by which no loss has a derivative; put "
        "jax.lax.stop_gradient on it."
    )


@dataclass(frozen=True)
class _WeightedSum:
    """The sum of a loss's parts at a temperature; hashable unless the temperature is traced."""

    parts: tuple[Part, ...]
    temperature: float

    def __call__(self, student_logits, teacher, labels=None, *, axis, where):
        arguments = LossInputs(student_logits, teacher, labels, self.temperature, axis, where)
        return sum(
            part.weight * evaluate(part.entry, part.all_parameters, arguments)
            for part in self.parts
        )


def get(text: str) -> Loss:
    """Returns the loss that `text` names, such as `kl`, `jsd(beta=0.3)` or `0.7*kl + 0.3*tv`.

    Raises:
      ValueError: if the text is no such sum, a name or parameter is unknown, or a number is out of
        its range.
    """
    if not isinstance(text, str):
        raise ValueError(f"a loss must be text, such as `kl`, got {text!r}.")
    _check_length(text)
    stripped = text.strip()
    if not stripped:
        raise ValueError("a loss must have a name, got empty text.")
    return Loss(text=stripped, parts=tuple(_parts(stripped)))


def _parts(text: str) -> Iterator[Part]:
    """Parses a sum such as 0.7*kl + 0.3*jsd(beta=0.3)."""
    position = 0
    while True:
        match = _PART.match(text, position)
        if not match:
            raise ValueError(_unreadable(text, text[position:]))
        weight, (low, high) = float(match["weight"] or 1), WEIGHTS
        if not low <= weight <= high:
            raise ValueError(
                f"a weight must be in [{low:g}, {high:g}], got {match['weight']} in `{text}`."
            )
        name = canonical(match["name"])
        yield Part(weight, name, _parameters(match["inside"], match["name"], ENTRIES[name]))
        plus = _PLUS.match(text, match.end())
        if not plus:
            break
        position = plus.end()
    if match.end() < len(text):
        raise ValueError(_unreadable(text, text[match.end() :].strip()))


def _unreadable(text, rest):
    return f"can't read `{text}` at `{rest}`; write a sum such as 0.7*kl + 0.3*jsd(beta=0.3)."


def _parameters(inside: str | None, name: str, entry: Entry) -> tuple[tuple[str, float], ...]:
    """Parses the text between parentheses, such as beta=0.3, to sorted pairs."""
    if inside is None:
        return ()
    if not inside.strip():
        raise ValueError(
            f"nothing stands in the parentheses of `{name}({inside})`; write `{name}`."
        )
    values = {}
    for piece in inside.split(","):
        match = _PARAMETER.fullmatch(piece.strip())
        if not match:
            raise ValueError(
                f"can't read `{piece.strip()}` in `{name}({inside})`; "
                f"write {name}(parameter=number)."
            )
        key, value = match["key"], float(match["value"])
        if key not in entry.parameters:
            names = ", ".join(entry.parameters) or "none"
            raise ValueError(f"`{name}` has no parameter `{key}`; known: {names}.")
        parameter = entry.parameters[key]
        if key in values:
            raise ValueError(f"`{key}` appears twice in `{name}({inside})`.")
        if not parameter.allows(value):
            raise ValueError(
                f"`{key}` of `{name}` must be in {parameter.interval}, got {match['value']}."
            )
        values[key] = int(value) if parameter.whole else value
    return tuple(sorted(values.items()))


def split(text: str) -> tuple[str, ...]:
    """Splits a list of losses at commas outside parentheses: `ce, jsd(beta=0.3)` gives two.

    Raises:
      ValueError: if a loss is empty or appears twice.
    """
    _check_length(text)
    losses = tuple(piece.strip() for piece in re.split(r",(?![^()]*\))", text))
    if not all(losses):
        raise ValueError(f"a list of losses must have a name between commas, got `{text}`.")
    first = {}
    for loss in losses:
        key = _canonical(get(loss))
        if key in first:
            raise ValueError(
                f"a list of losses must name each once, got `{first[key]}` and `{loss}`."
            )
        first[key] = loss
    return losses


def _check_length(text):
    """Raises ValueError for long text, before anything repeats it or takes quadratic time."""
    if len(text) > LONGEST:
        raise ValueError(
            f"losses have at most {LONGEST:,} characters, got {len(text):,}: `{text[:20]}...`."
        )


def _canonical(loss):
    """Returns a key that aliases, defaults and the order of a sum don't change."""
    return tuple(
        sorted((p.name, p.weight, tuple(sorted(p.all_parameters.items()))) for p in loss.parts)
    )
