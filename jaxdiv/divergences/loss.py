"""Losses from text: a name, a name with parameters, or a weighted sum of them."""

import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxdiv import targets
from jaxdiv.divergences import inputs
from jaxdiv.divergences.blocks import by_rows
from jaxdiv.divergences.entry import Entry
from jaxdiv.divergences.evaluate import Given, evaluate
from jaxdiv.divergences.registry import ENTRIES, canonical

_NUMBER = r"\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?"
LONGEST = 10_000  # characters of a loss or a list of them
_PART = re.compile(
    rf"(?:(?P<weight>[+-]?(?:{_NUMBER}))\s*\*\s*)?(?P<name>[A-Za-z_]\w*)\s*(?:\((?P<inside>[^()]*)\))?",
    re.ASCII,
)
_PARAMETER = re.compile(
    rf"(?P<key>[A-Za-z_]\w*)\s*=\s*(?P<value>[+-]?(?:{_NUMBER}|inf|nan))", re.ASCII
)
# Beyond these float32 may hold a weight or a temperature, but not what it makes of a loss.
WEIGHTS = (1e-30, 1e30)
TEMPERATURES = (1e-6, 1e6)


@dataclass(frozen=True)
class Part:
    """weight * name(**parameters), with the full name and parameters as sorted pairs."""

    weight: float
    name: str
    parameters: tuple[tuple[str, float], ...]

    @property
    def entry(self) -> Entry:
        return ENTRIES[self.name]

    @property
    def all_parameters(self) -> dict[str, float]:
        """The given ones and the others' defaults."""
        return self.entry.defaults | dict(self.parameters)


@dataclass(frozen=True)
class Loss:
    """A weighted sum of divergences; hashable, made by `get`.

    Attributes:
      text: as it was written.
      parts: what is summed.
    """

    text: str
    parts: tuple[Part, ...]

    @property
    def needs_labels(self) -> bool:
        return any(part.entry.target == "labels" for part in self.parts)

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
        """One value a row.

        Args:
          student_logits: [..., V].
          teacher: a constant: logits or log-probabilities [..., V], or a `Labels`, `TopK` or
            `Samples` of `targets`; None where no part looks at it.
          labels: [...] integers, for losses on data labels; a teacher of `Labels` is its own.
          temperature: T in [1e-6, 1e6], a constant, divides both sides' logits; the factor T² (T
            where the gradient would grow otherwise) keeps the gradient's size. Losses on data
            labels (`ce_data`) stay at T = 1; a teacher of `Labels` is heated as any other. A traced
            T is held in that range, and NaN below 0.
          vocab_size: only the first so many classes exist, on both sides; needed where their padded
            sizes differ.
          axis: the classes, of logits.
          where: classes that exist, broadcast to the logits.

        Returns:
          [...], float32 at least.

        Raises:
          ValueError: if teacher or labels are missing, the temperature is out of its range or a
            derivative by it is asked for, a vocabulary is smaller than `vocab_size`, or the loss
            can't be had from what the teacher gives.
        """
        if isinstance(teacher, targets.Labels) and labels is None:
            labels = teacher.classes
        if self.needs_labels and labels is None:
            raise ValueError(f"`{self.text}` needs `labels`, got None.")
        temperature = _checked(temperature)
        if teacher is None:
            if any(part.entry.target == "logits" for part in self.parts):
                raise ValueError(f"`{self.text}` needs the teacher's logits, got None.")
            teacher = student_logits  # of the right shape, and not looked at
        student_logits, labels = (
            inputs.cut(student_logits, vocab_size, axis),
            () if labels is None else (labels,),
        )
        if isinstance(teacher, targets.Labels | targets.TopK | targets.Samples):
            return _Rows(self.parts, temperature)(
                student_logits, teacher, *labels, axis=axis, where=where
            )
        teacher, labels = inputs.cut(teacher, vocab_size, axis), labels if self.needs_labels else ()
        return by_rows(
            _Rows(self.parts, temperature), student_logits, teacher, *labels, axis=axis, where=where
        )


def mirror(loss: Loss) -> Loss:
    """The loss L' with L'(teacher, student) = L(student, teacher), whose gradient is L's by the
    teacher's logits.

    Raises:
      ValueError: if a part has none on the menu.
    """
    return Loss(text=f"mirror of {loss.text}", parts=tuple(map(_mirrored, loss.parts)))


def _mirrored(part):
    made = part.entry.mirror(**part.all_parameters)
    if made is None:
        raise ValueError(
            f"`{part.name}` has no mirror on the menu, so that no gradient by its teacher can be had."
        )
    weight, name, parameters = made
    return Part(part.weight * weight, name, tuple(sorted(parameters.items())))


def _checked(temperature):
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
        "`temperature` is a constant, by which no loss has a derivative; put jax.lax.stop_gradient on it."
    )


@dataclass(frozen=True)
class _Rows:
    """The sum of a loss's parts at a temperature."""

    parts: tuple[Part, ...]
    temperature: float

    def __call__(self, student_logits, teacher, labels=None, *, axis, where):
        given = Given(student_logits, teacher, labels, self.temperature, axis, where)
        return sum(
            part.weight * evaluate(part.entry, part.all_parameters, given) for part in self.parts
        )


def get(text: str) -> Loss:
    """The loss that `text` names, such as `kl`, `jsd(beta=0.3)` or `0.7*kl + 0.3*tv`.

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


def _parts(text):
    at = 0
    while True:
        match = _PART.match(text, at)
        if not match:
            raise ValueError(
                f"can't read `{text}` at `{text[at:]}`; write a sum such as 0.7*kl + 0.3*jsd(beta=0.3)."
            )
        yield _part(match, text)
        plus = re.compile(r"\s*\+\s*").match(text, match.end())
        if not plus:
            break
        at = plus.end()
    if match.end() < len(text):
        raise ValueError(
            f"can't read `{text}` at `{text[match.end() :].strip()}`; write a sum such as 0.7*kl + 0.3*jsd(beta=0.3)."
        )


def _part(match, text):
    weight = float(match["weight"] or 1)
    low, high = WEIGHTS
    if not low <= weight <= high:
        raise ValueError(
            f"a weight must be in [{low:g}, {high:g}], got {match['weight']} in `{text}`."
        )
    name = canonical(match["name"])
    return Part(
        weight=weight,
        name=name,
        parameters=_parameters(match["inside"], match["name"], ENTRIES[name]),
    )


def _parameters(inside, name, entry):
    if inside is None:
        return ()
    if not inside.strip():
        raise ValueError(
            f"nothing stands in the parentheses of `{name}({inside})`; write `{name}`."
        )
    given = {}
    for piece in inside.split(","):
        match = _PARAMETER.fullmatch(piece.strip())
        if not match:
            raise ValueError(
                f"can't read `{piece.strip()}` in `{name}({inside})`; write {name}(parameter=number)."
            )
        key, value = match["key"], float(match["value"])
        if key not in entry.parameters:
            known = ", ".join(entry.parameters) or "none"
            raise ValueError(f"`{name}` has no parameter `{key}`; known: {known}.")
        if key in given:
            raise ValueError(f"`{key}` stands twice in `{name}({inside})`.")
        if not entry.parameters[key].allows(value):
            raise ValueError(
                f"`{key}` of `{name}` must be in {entry.parameters[key].interval}, got {match['value']}."
            )
        given[key] = int(value) if entry.parameters[key].whole else value
    return tuple(sorted(given.items()))


def split(text: str) -> tuple[str, ...]:
    """A list of losses by commas outside parentheses, stripped: `ce,jsd(beta=0.3)` -> ("ce",
    "jsd(beta=0.3)").

    Raises:
      ValueError: if a loss is empty or stands twice.
    """
    _check_length(text)
    losses = tuple(piece.strip() for piece in re.split(r",(?![^()]*\))", text))
    if not all(losses):
        raise ValueError(f"a list of losses must have a name between commas, got `{text}`.")
    parts = [_canonical(get(loss)) for loss in losses]
    for i, loss in enumerate(losses):
        if parts[i] in parts[:i]:
            first = losses[parts.index(parts[i])]
            raise ValueError(f"a list of losses must name each once, got `{first}` and `{loss}`.")
    return losses


def _check_length(text):
    """Before anything that takes the square of it, or repeats it in an error."""
    if len(text) > LONGEST:
        raise ValueError(
            f"losses have at most {LONGEST:,} characters, got {len(text):,}: `{text[:20]}...`."
        )


def _canonical(loss):
    """Equal for losses that are the same: aliases, defaults and the order of a sum make no
    other."""
    return sorted(
        (part.name, part.weight, sorted(part.all_parameters.items())) for part in loss.parts
    )
