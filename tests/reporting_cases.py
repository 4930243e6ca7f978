"""Made-up results and training curves that look like those of a quick start."""

import itertools
import math

import numpy as np
import pandas as pd

from jaxdiv.reporting import results

ACCEPTANCE = {
    "ce": 0.7702, "ce_argmax": 0.7191, "ce_data": 0.7583, "kl": 0.7702, "rkl": 0.7775,
    "jeffreys": 0.7752, "jsd": 0.7841, "tv": 0.7886, "nla": 0.7869, "lk_hybrid": 0.7830,
    "untrained": 0.5604,
}  # fmt: skip
TEMPERATURES = (0.25, 0.5, 1.0, 2.0, 5.0, 20.0)
# Acceptance above the corpus's, and tokens.
CONTEXTS = {
    "corpus": (0.0, 15_830),
    "generated": (0.012, 14_110),
    "generated_greedy": (0.051, 12_900),
}
OWN_TEXT = {"generated": 1.0, "generated_greedy": 0.0}


def frame(*, losses=tuple(ACCEPTANCE), seeds=3, rename=None) -> pd.DataFrame:
    """Results with the rows that a run writes; `rename` maps the losses above to other names."""
    noise = np.random.default_rng(7)
    rows = []
    for context, (shift, tokens) in CONTEXTS.items():
        for temperature in TEMPERATURES:
            by_seed = {loss: _acceptance(loss, shift, temperature, seeds, noise) for loss in losses}
            rows += _acceptances(by_seed, context=context, temperature=temperature, n=tokens)
        matches = {loss: by_seed[loss] * 0 + ACCEPTANCE[loss] + shift + 0.021 for loss in losses}
        rows += _rows("greedy_match", matches, context=context, temperature=0.0, n=tokens)
        if context in OWN_TEXT:
            rows += _calls(matches, context=context, temperature=OWN_TEXT[context], n=tokens)
    return results.table(rows).replace({"loss": rename or {}})


def curves(*, losses=tuple(ACCEPTANCE), seeds=3, steps=300) -> pd.DataFrame:
    """Training curves of the losses that are trained."""
    noise, rows = np.random.default_rng(11), []
    trained = [loss for loss in losses if loss != "untrained"]
    for loss, seed, step in itertools.product(trained, range(seeds), range(5, steps + 1, 5)):
        fall = math.exp(-step / 60)
        norm = (0.2 + 1.5 * fall) * noise.lognormal(0, 0.2)
        rows.append((step, loss, seed, "loss", (0.6 + 1.2 * fall) * noise.normal(1, 0.05)))
        rows.append((step, loss, seed, "gradient_norm", norm))
        if step % 50 == 0:
            accepted = 0.56 + (ACCEPTANCE[loss] - 0.56) * (1 - fall) + noise.normal(0, 0.002)
            rows.append((step, loss, seed, "acceptance", accepted))
    return pd.DataFrame(rows, columns=["step", "loss", "seed", "metric", "value"])


FACTS = {
    "data fingerprint": "5f0c9d1be7a34c22",
    "python": "3.11.7",
    "jax": "0.10.2",
    "git revision": "v0.1.0-3-g1a2b3c4",
    "seeds": "0, 1, 2",
    "intervals cover": "test documents and initial values; the data order is one for all students",
}
CONFIG = "losses: [ce, kl, tv]\nseeds: 3\nstudent:\n  kind: kangaroo\n  exit_layer: 2\n"


def _acceptance(loss, shift, temperature, seeds, noise):
    at_one = ACCEPTANCE[loss] + shift
    gain = dict(zip(TEMPERATURES, (-0.03, -0.02, 0.0, 0.045, 0.14, 0.2), strict=True))[temperature]
    moved = 1 - (1 - at_one) * (1 - gain / 0.23)
    spread = np.random.default_rng(3).normal(0, 0.0012, seeds)  # ce and kl share it
    further = 0 if loss in ("ce", "kl") else noise.normal(0, 0.0008, seeds)
    return np.clip(moved + spread + further, 0, 1)


def _acceptances(by_seed, *, context, temperature, n):
    where = {"context": context, "temperature": temperature, "n": n}
    rows = _rows("acceptance", by_seed, **where)
    rows += _rows("acceptance_greedy_draft", {k: v - 0.04 for k, v in by_seed.items()}, **where)
    base = by_seed["ce" if "ce" in by_seed else next(iter(by_seed))]
    differences = {k: v - base for k, v in by_seed.items() if v is not base}
    return rows + _rows("difference", differences, half=0.0021, **where)


def _calls(matches, *, context, temperature, n):
    rows, where = [], {"context": context, "temperature": temperature, "n": n}
    for gamma in range(1, 9):
        tokens = {k: (1 - v ** (gamma + 1)) / (1 - v) for k, v in matches.items()}
        for measure, factor in (("tau", 0.97), ("tau_greedy_draft", 0.93), ("tau_iid", 1.0)):
            by_seed = {k: factor * v for k, v in tokens.items()}
            rows += _rows(measure, by_seed, gamma=gamma, half=0.04, **where)
        reach = {k: v**gamma for k, v in matches.items()}
        rows += _rows("acceptance_at", reach, gamma=gamma, **where)
    return rows


def _rows(measure, by_seed, *, half=0.006, **where):
    rows = []
    for loss, values in by_seed.items():
        base = {"loss": loss, "measure": measure, **where}
        mean = float(np.mean(values))
        width = 1e-8 if measure == "difference" and loss == "kl" else half
        interval = {"value": mean, "low": mean - width, "high": mean + width}
        rows.append({**base, "seed": "all", **interval})
        rows += [{**base, "seed": str(s), "value": float(v)} for s, v in enumerate(values)]
    return rows
