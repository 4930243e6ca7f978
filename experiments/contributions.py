"""What each class adds to cross-entropy and to KL, and to their gradient, for two given distributions.

  python -m experiments.contributions --p=.98,.01,.01 --q=.979,.02,.001

The shares of the two losses differ; what the student's logits feel, q - p, does not.
"""

import math

import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import cli
from jaxdiv.contributions import contributions

P = flags.DEFINE_string("p", None, "The teacher's distribution: comma-separated probabilities that sum to 1.")
Q = flags.DEFINE_string("q", None, "The student's distribution, over the same classes.")
TOLERANCE = 1e-3  # of a distribution's sum, as its digits are rounded


def distribution(name: str, text: str | None) -> np.ndarray:
    """The probabilities [V] that `text` lists.

    Raises:
      ValueError: if they are no numbers, negative, or do not sum to 1.
    """
    if not text:
        raise ValueError(f"`--{name}` must list probabilities, such as --{name}=.98,.01,.01.")
    try:
        values = np.array([float(piece) for piece in text.split(",")])
    except ValueError:
        raise ValueError(f"`--{name}` must list numbers by commas, got {text}.") from None
    if not np.all(values >= 0):
        raise ValueError(f"`--{name}` must have no negative or missing probability, got {text}.")
    if not math.isclose(values.sum(), 1, abs_tol=TOLERANCE):
        raise ValueError(f"`--{name}` must sum to 1, got {text} with sum {values.sum():g}.")
    return values


def table(p: np.ndarray, q: np.ndarray) -> Table:
    """One row a class: raw parts of CE and KL with their shares, and the gradient of each."""
    with np.errstate(divide="ignore"):
        logits = {"student_logits": jnp.log(q), "teacher_logits": jnp.log(p)}
    raw = as_posted(p, q)
    gradient = {text: np.asarray(contributions(text, gauge="gradient", **logits)) for text in ("ce", "kl")}
    result = Table(title="What each class adds (nats), and its share of the absolute sum", caption=_CAPTION)
    for heading in ("class", "p", "q", "CE", "CE share", "KL", "KL share", "CE gradient", "KL gradient"):
        result.add_column(heading, justify="right", no_wrap=True)
    columns = [raw["ce"], _shares(raw["ce"]), raw["kl"], _shares(raw["kl"]), gradient["ce"], gradient["kl"]]
    forms = [".6f", ".2%", ".7f", ".2%", ".6f", ".6f"]
    for i, row in enumerate(zip(*columns, strict=True)):
        cells = (format(float(value), form) for value, form in zip(row, forms, strict=True))
        result.add_row(str(i), f"{p[i]:g}", f"{q[i]:g}", *cells)
    result.add_section()
    result.add_row("sum", "", "", f"{raw['ce'].sum():.6f}", "", f"{raw['kl'].sum():.7f}", "", "", "")
    return result


def as_posted(p: np.ndarray, q: np.ndarray) -> dict[str, np.ndarray]:
    """-p·log q and p·(log p - log q) of single-precision probabilities that are not renormalized, as the post has them.

    `contributions(gauge="raw")` renormalizes, which changes the seventh decimal of the post's first KL.
    """
    p, q = p.astype(np.float32), q.astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "ce": np.where(p > 0, -p * np.log(q), 0),
            "kl": np.where(p > 0, p * (np.log(p) - np.log(q)), 0),
        }


_CAPTION = "CE = -p·log q, KL = p·(log p - log q); gradient by the student's logits = q - p for both"


def _shares(parts):
    sizes = np.abs(parts)
    return sizes / sizes.sum() if 0 < sizes.sum() < np.inf else np.full_like(sizes, np.nan)


def main(argv) -> None:
    del argv
    p, q = distribution("p", P.value), distribution("q", Q.value)
    if len(p) != len(q):
        raise ValueError(f"`--p` and `--q` must have as many classes, got {len(p)} and {len(q)}.")
    Console(width=110).print(table(p, q))


if __name__ == "__main__":
    cli.run(main)
