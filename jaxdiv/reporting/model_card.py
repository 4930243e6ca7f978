"""README.md of an exported model: its kind, its measured acceptance, and the run it comes from."""

import json
from collections.abc import Mapping

import pandas as pd

from jaxdiv import schema
from jaxdiv.reporting import results
from jaxdiv.reporting.tables import Table

_ACCEPTANCES = (
    schema.ACCEPTANCE,
    schema.ACCEPTANCE_BY_RULE[schema.GREEDY_DRAFT],
    schema.ACCEPTANCE_BY_RULE[schema.EXACT_MATCH],
    schema.GREEDY_MATCH,
)
_HEADS = ("context", "measure", "temperature", "γ", "value", "95% interval", "tokens")
_NOTE = (
    "Intervals are at 95%, over the test documents, for this one student. `corpus`: held-out "
    "documents; `generated`: the\nteacher's own text at temperature 1; `generated_greedy`: its "
    "likeliest tokens. `tau`: expected tokens per target call with\nγ drafts a round."
)
_HEADER = "---\nlibrary_name: {library}\ntags:\n- speculative-decoding\n{more}---\n\n# {title}\n"


def student(
    *,
    loss: str,
    seed: int,
    frame: pd.DataFrame,
    kind: str,
    library: str,
    use: str,
    config: Mapping,
    facts: Mapping[str, str],
) -> str:
    """Returns the card of one student.

    Args:
      loss, seed: the student, whose rows of `frame` the card shows.
      frame: the run's results.
      kind: the kind of model in a few words.
      library: the one that loads it.
      use: how to use it, in Markdown.
      config: the run's.
      facts: the run's versions, fingerprints and counts.

    Raises:
      ValueError: the results hold nothing of this student.
    """
    rows = results.select(frame, seed=str(seed), loss=loss)
    if not rows["measure"].isin(_ACCEPTANCES).any():
        raise ValueError(
            f"the results hold no acceptance of loss {loss!r} and seed {seed}; measure again"
        )
    calls = rows["measure"].isin([schema.TAU, schema.TAU_GREEDY_DRAFT])
    gamma = results.nearest(rows[calls]["gamma"], schema.HEADLINE_GAMMA)
    rows = rows[rows["measure"].isin(_ACCEPTANCES) | (calls & rows["gamma"].eq(gamma))]
    cells = []
    for row in rows.itertuples():
        drafts = "" if pd.isna(row.gamma) else f"{row.gamma:g}"
        interval = f"{row.low:.4f} to {row.high:.4f}"
        numbers = (f"{row.temperature:g}", drafts, f"{row.value:.4f}", interval, f"{row.n:.0f}")
        cells.append((row.context, f"`{row.measure}`", *numbers))
    title = f"Draft model trained with {loss}"
    parts = [
        _HEADER.format(library=library, more="- draft-model\n", title=title),
        f"{kind}.\nTrained by jaxdiv under the loss `{loss}`, seed {seed}, for the teacher of the "
        "run below.\n",
        f"## Use\n\n{use}",
        "## Measured acceptance\n",
        Table(_HEADS, cells, left=range(len(_HEADS)), code=False).markdown(),
        f"{_NOTE}\n\n{_run(config, facts)}",
    ]
    return "\n".join(parts)


def teacher(*, use: str, config: Mapping, facts: Mapping[str, str]) -> str:
    """Returns the card of a run's teacher."""
    header = _HEADER.format(library="transformers", more="", title="Teacher of draft models")
    kind = "Llama decoder, the teacher of a jaxdiv run.\n"
    return "\n".join([header, kind, f"## Use\n\n{use}", _run(config, facts)])


def _run(config, facts):
    lines = "".join(f"- {name}: {value}\n" for name, value in facts.items())
    return f"## The run\n\n{lines}\n```json\n{json.dumps(config, indent=2)}\n```\n"
