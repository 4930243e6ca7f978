"""README.md of an exported model: what it is, what was measured of it, and where each number comes
from."""

import json
from collections.abc import Mapping

import pandas as pd

from jaxdiv.reporting import results, results_table

_MEASURES = ("acceptance", "acceptance_greedy_draft", "acceptance_exact_match", "greedy_match")
_CALLS = ("tau", "tau_greedy_draft")
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
    """The card of one student.

    Args:
      loss, seed: whose rows of `frame` it tells.
      frame: the run's results.
      kind: what model it is, in a few words.
      library: that loads it.
      use: how to use it, Markdown.
      config: the run's.
      facts: the run's versions, fingerprints and counts.

    Raises:
      ValueError: the results hold nothing of this student.
    """
    mine = results.select(frame, seed=str(seed), loss=loss)
    if not mine["measure"].isin(_MEASURES).any():
        raise ValueError(
            f"the results hold no acceptance of loss {loss!r} and seed {seed}; measure again"
        )
    parts = [
        _HEADER.format(
            library=library, more="- draft-model\n", title=f"Draft model trained with {loss}"
        ),
        f"{kind}.\nTrained by jaxdiv under the loss `{loss}`, seed {seed}, for the teacher of the run below.\n",
        f"## Use\n\n{use}",
        "## Measured acceptance\n",
        _measured(mine),
        "Intervals are at 95%, over the test documents, for this one student. `corpus`: held-out documents; "
        "`generated`: the\nteacher's own text at temperature 1; `generated_greedy`: its likeliest tokens. "
        f"`tau`: expected tokens a target call with\nγ drafts a round.\n\n{_run(config, facts)}",
    ]
    return "\n".join(parts)


def teacher(*, use: str, config: Mapping, facts: Mapping[str, str]) -> str:
    """The card of a run's teacher."""
    header = _HEADER.format(library="transformers", more="", title="Teacher of draft models")
    what = "Llama decoder, the teacher of a jaxdiv run.\n"
    return "\n".join([header, what, f"## Use\n\n{use}", _run(config, facts)])


def _measured(rows):
    gamma = results.nearest(rows[rows["measure"].isin(_CALLS)]["gamma"], results_table.GAMMA)
    kept = rows[
        rows["measure"].isin(_MEASURES) | (rows["measure"].isin(_CALLS) & rows["gamma"].eq(gamma))
    ]
    heads, lines = ("context", "measure", "temperature", "γ", "value", "95% interval", "tokens"), []
    for row in kept.itertuples():
        drafts = "" if pd.isna(row.gamma) else f"{row.gamma:g}"
        interval = f"{row.low:.4f} to {row.high:.4f}"
        numbers = (f"{row.temperature:g}", drafts, f"{row.value:.4f}", interval, f"{row.n:.0f}")
        lines.append((row.context, f"`{row.measure}`", *numbers))
    return results_table.in_markdown(heads, lines)


def _run(config, facts):
    known = "".join(f"- {name}: {value}\n" for name, value in facts.items())
    return f"## The run\n\n{known}\n```json\n{json.dumps(config, indent=2)}\n```\n"
