"""Large and small: rare classes, logits of ±30 to ±10,000, classes of -inf, equal sides, half
precision."""

import numpy as np

from jaxdiv.audit.codes import MISTAKE
from jaxdiv.audit.forms import log_softmax
from jaxdiv.audit.gradients import expected_gradient, expected_values, row_gradients
from jaxdiv.audit.identify import Fit
from jaxdiv.audit.inputs import SEED, Rows, random_rows, tiled
from jaxdiv.audit.probe import CallError, Probe
from jaxdiv.audit.reduction import Reduction, collapsed, row_values
from jaxdiv.audit.result import Finding, finding

CLOSE = 3e-3  # relative, where float32 has lost digits to large logits
_EACH = 4
_RARE = (0.0, -9.0, -14.0, -18.5, -23.0, -27.6)  # logits of classes with probability down to 1e-12


def cases(classes: int) -> dict[str, Rows]:
    """Rows at the edges by name, `_EACH` each."""
    draw = np.random.default_rng(SEED + 9)

    def rows(student, teacher):
        labels = np.argmax(teacher, -1) if np.ndim(teacher) else 0
        groups = np.arange(len(student))
        return Rows(np.float32(student), np.float32(teacher), np.int32(labels), groups)

    def noise():
        return draw.normal(size=(_EACH, classes))

    def rare():
        return (
            draw.permuted(np.tile(np.resize(_RARE, classes), (_EACH, 1)), axis=-1) + 0.3 * noise()
        )

    def wide(size):
        return size * np.sign(noise())

    both = np.where(np.arange(classes) % 4 == 1, -np.inf, 0)
    absent = lambda x: x + both  # noqa: E731
    return {
        "rare": rows(rare(), rare()),
        "rare student": rows(rare(), 1.5 * noise()),
        "rare teacher": rows(1.5 * noise(), rare()),
        "30": rows(wide(30) + noise(), wide(30) + noise()),
        "100": rows(wide(100) + noise(), wide(100) + noise()),
        "10000": rows(wide(1e4), wide(1e4)),
        "equal": rows(*[1.5 * noise()] * 2),
        "absent": rows(absent(1.5 * noise()), absent(1.5 * noise())),
        "absent of the teacher": rows(1.5 * noise(), absent(1.5 * noise())),
    }


def examine(probe: Probe, reduction: Reduction, fit: Fit | None, added: bool) -> list[Finding]:
    """Findings at the edges.

    Args:
      fit: what the loss is, if known.
      added: whether a function of the teacher was added to it, so that values can't be foretold.
    """
    named = cases(probe.classes)
    whole = Rows(*(np.concatenate(parts) for parts in zip(*named.values(), strict=True)))
    try:
        got = row_values(probe, whole, reduction)
        slopes = (
            row_gradients(probe, whole, reduction)[0]
            if probe.differentiable
            else np.zeros_like(whole.student)
        )
    except CallError as error:
        return [
            finding(
                "does_not_run", ("logits at the edges", "a value", str(error)), error=str(error)
            )
        ]
    known = fit is not None and fit.clean
    expected = expected_values(fit, whole) if known else np.full(len(got), np.nan)
    at = {name: slice(i * _EACH, (i + 1) * _EACH) for i, name in enumerate(named)}
    seen = {name: (got[place], expected[place], slopes[place]) for name, place in at.items()}
    compare = known and not added
    found = [
        *_large(seen, compare),
        *_slopes(seen),
        *_absent(seen, known, compare),
        *_equal(seen, known),
    ]
    if known and np.any(slopes != 0) and not any(one.severity == MISTAKE for one in found):
        found += _rare_slopes(fit, named, seen)
    return _once(found) + list(_half(probe, reduction, named["30"], known, expected[at["30"]]))


def _once(found):
    return list({one.code: one for one in reversed(found)}.values())[::-1]


def _wrong(got, expected):
    """Finite where the right value is, and yet another."""
    with np.errstate(invalid="ignore"):
        off = np.abs(got - expected) > CLOSE * np.abs(expected) + 1e-5
    return np.isfinite(got) & np.isfinite(expected) & (np.abs(expected) < 1e30) & off


def _worst(got, expected, where):
    i = int(np.flatnonzero(where)[0])
    return float(expected[i]), float(got[i])


def _broken(got, expected, known):
    """Not finite though the right value is; NaN always."""
    return np.isnan(got) | (
        np.isinf(got) & (np.isfinite(expected) & (np.abs(expected) < 1e30) if known else True)
    )


def _large(seen, compare):
    known = compare or any(np.isfinite(expected).any() for _, expected, _ in seen.values())
    for name in ("rare", "rare student", "rare teacher", "30"):
        got, expected, _ = seen[name]
        label = "logits of ±30" if name == "30" else "probabilities of 1e-4 to 1e-12"
        if compare and np.any(_wrong(got, expected)):
            yield finding(
                "clamped_log", (label, *_worst(got, expected, _wrong(got, expected))), how=""
            )
    for name in ("rare", "rare student", "rare teacher", "30", "100", "10000"):
        got, expected, _ = seen[name]
        broken = _broken(got, expected, known)
        size = _logits(name)
        if np.any(broken):
            code = (
                "large_logits"
                if size > 1e3 or (size > 30 and not np.any(np.isnan(got)))
                else "nan_at_large_logits"
            )
            i = int(np.flatnonzero(broken)[0])
            right = f"{expected[i]:.6g}" if known else "a finite value"
            yield finding(code, (f"logits of ±{size:g}", right, float(got[i])), size=size)
            break
    got, expected, _ = seen["100"]
    if compare and np.any(_wrong(got, expected)):
        yield finding(
            "extreme_clamp", ("logits of ±100", *_worst(got, expected, _wrong(got, expected)))
        )


def _logits(name):
    return float(name) if name.isdigit() else 27.0


def _slopes(seen):
    """Gradients that are not finite though the value is."""
    for name in ("rare", "rare student", "rare teacher", "30", "100"):
        got, _, slopes = seen[name]
        lost = np.isfinite(got) & ~np.all(np.isfinite(slopes), -1) & (np.abs(got) < 1e30)
        if np.any(lost):
            where = f"at logits of ±{_logits(name):g}"
            yield finding(
                "nan_gradient", (where, "a finite gradient", "NaN or infinity"), where=where
            )
            return


def _rare_slopes(fit, named, seen):
    """The gradient of rare classes, which a clamp cuts off although the value hardly shows it."""
    ratios, examples = [], []
    for name in ("rare student", "rare"):
        rows, slopes = named[name], seen[name][2]
        expected = expected_gradient(fit, rows)
        log_q = log_softmax(rows.student / fit.temperature)
        rare = (log_q < -14.5) & (np.abs(expected) > 0.02 * np.exp(log_q))
        ratios += list(slopes[rare] / expected[rare])
        examples += list(zip(expected[rare], slopes[rare], strict=True))
    if len(ratios) > 5 and np.median(np.abs(np.array(ratios) - 1)) > 0.5:
        expected, got = examples[int(np.argmax(np.abs(np.array(ratios) - 1)))]
        told = ("the gradient of a class of probability below 1e-6", float(expected), float(got))
        yield finding("clamped_log", told, how=", which the gradient shows")


def _absent(seen, known, compare):
    for name in ("absent", "absent of the teacher"):
        got, expected, slopes = seen[name]
        where = "on both sides" if name == "absent" else "of the teacher"
        told = f"classes of -inf {where}"
        if np.any(np.isnan(got)):
            right = f"{expected[0]:.6g}" if known else "a value"
            yield finding("nan_at_minus_inf", (told, right, "NaN"), where=where)
        elif known and np.any(_wrong(got, expected)) and compare:
            yield finding(
                "wrong_at_minus_inf",
                (told, *_worst(got, expected, _wrong(got, expected))),
                where=f" {where}",
            )
        elif np.any(np.isfinite(got) & np.any(np.isnan(slopes), -1)):
            yield finding(
                "nan_gradient",
                (told, "a gradient without NaN", "NaN"),
                where=f"where a class is -inf {where}",
            )


def _equal(seen, known):
    got, _, slopes = seen["equal"]
    told = "student and teacher of equal logits"
    if not np.all(np.isfinite(got)):
        yield finding("nan_at_equality", (told, "a finite value", float(got[~np.isfinite(got)][0])))
    elif not np.all(np.isfinite(slopes)):
        yield finding(
            "nan_gradient",
            (told, "a gradient of 0", "NaN or infinity"),
            where="where both sides are equal",
        )


def _half(probe, reduction, rows, known, expected):
    """float16 inputs, where the right value fits the type and float32 inputs did well."""
    one = rows.take(slice(0, 2))
    try:
        single = row_values(probe, one, reduction)
        half = (
            collapsed(probe.values(tiled(one, probe.lead), np.float16), reduction.by_class)
            / reduction.unit
        )
    except CallError:
        return
    lost = np.isfinite(single) & (np.abs(single) < 3e3) & ~np.isfinite(half)
    if known:
        lost &= np.abs(expected[:2]) < 3e3
    if np.any(lost):
        i = int(np.flatnonzero(lost)[0])
        yield finding(
            "float16_overflow", ("float16 logits of ±30", float(single[i]), float(half[i]))
        )


def stationary(probe: Probe, reduction: Reduction) -> list[Finding]:
    """For a loss that is not identified: a student equal to the teacher must be no worse than one
    near it."""
    rows = random_rows(probe.classes, teachers=8, students=6, seed=21)
    draw = np.random.default_rng(22)
    near = rows.teacher + 0.1 * draw.normal(size=rows.teacher.shape)
    equal = row_values(probe, rows._replace(student=rows.teacher), reduction)
    moved = row_values(probe, rows._replace(student=near.astype(np.float32)), reduction)
    worse = equal - moved
    if np.all(np.isfinite(worse)) and np.any(worse > 1e-4 * (np.max(np.abs(moved)) + 1e-6)):
        i = int(np.argmax(worse))
        told = "a student equal to the teacher, and one near it"
        return [
            finding("not_least_at_equality", (told, f"at most {moved[i]:.6g}", float(equal[i])))
        ]
    return []
