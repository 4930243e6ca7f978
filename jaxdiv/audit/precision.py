"""Whether two calls agree, and whether a value goes in steps, as after a cast to half precision."""

import numpy as np

from jaxdiv.audit.inputs import Batch, random_batch, random_rows, tiled
from jaxdiv.audit.probe import Probe
from jaxdiv.audit.result import Finding, finding

COARSE = 0.7  # of trials in which a small move of the largest logit changes nothing
SMALL, LARGE = 2e-5, 3e-2  # moves, relative: below a half type's steps and above them
ULPS = 8 * 2.0**-24  # a relative change that float32 can't swallow


def flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1)


def deterministic(probe: Probe) -> list[Finding]:
    one = Batch(*(part[0] for part in random_batch(probe.lead, probe.classes)))
    first, *others = (probe.value(one, eager=True) for _ in range(3))
    for again in others:
        if not np.array_equal(first, again, equal_nan=True):
            told = (
                "one batch, called thrice",
                f"{np.ravel(first)[0]:.6g}",
                f"{np.ravel(again)[0]:.6g}",
            )
            return [finding("not_deterministic", told)]
    return []


def steps(probe: Probe) -> list[Finding]:
    """A finding if the value goes in steps as a logit of one side, or of both, is moved."""
    sides = ("student", "teacher") if probe.takes_teacher else ("student",)
    shares = {side: _unmoved(probe, side) for side in sides}
    coarse = [side for side, share in shares.items() if share > COARSE]
    if not coarse:
        return []
    which = " and ".join(coarse)
    told = (
        f"one logit of the {which} moved by {SMALL:.0e} of itself",
        "a change of the value",
        f"none in {max(shares.values()):.0%} of trials",
    )
    return [
        finding(
            "low_precision", told, digits=f"a small move of a logit of the {which} changes nothing"
        )
    ]


def _unmoved(probe, side):
    """The share of rows whose largest logit can make a small move without any change, where a large
    one tells.

    A loss that sees the largest class alone is moved by neither; one with a small weight on that
    side is moved by less than float32 shows.
    """
    rows = random_rows(probe.classes, teachers=40, students=1, seed=81)

    def moved(by):
        logits = getattr(rows, side).copy()
        np.put_along_axis(
            logits, logits.argmax(-1)[:, None], logits.max(-1)[:, None] * np.float32(1 + by), -1
        )
        return flat(probe.values(tiled(rows._replace(**{side: logits}), probe.lead)))

    base, near, far = moved(0), moved(SMALL), moved(LARGE)
    with np.errstate(invalid="ignore"):
        telling = np.any(np.abs(far - base) * SMALL / LARGE > ULPS * np.abs(base), -1)
    if telling.sum() < len(telling) / 4:
        return 0.0
    return float(np.mean(np.all(near == base, -1)[telling]))
