"""Classes: their number, order and padding; a truncation to the largest; two vocabularies of
different size."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from jaxdiv.audit import misread, mistaken
from jaxdiv.audit.fits import Observed, weigh
from jaxdiv.audit.identify import Fit, allowed
from jaxdiv.audit.inputs import Batch, Rows, random_batch, random_rows
from jaxdiv.audit.probe import CallError, Probe
from jaxdiv.audit.reduction import Reduction, row_values
from jaxdiv.audit.result import Finding, finding

SIZES = (131,)


def compare_sizes(
    probe: Probe, reduced: Reduction, fit: Fit
) -> tuple[list[Finding], Reduction, Fit]:
    """A clean fit at other sizes of the vocabulary: findings, the reduction with its classes, the
    fit mended."""
    ratios = {}
    for classes in SIZES:
        if classes <= probe.classes:
            continue
        rows = random_rows(classes, teachers=2, students=3, seed=31)
        try:
            observed = Observed(
                row_values(probe, mistaken.given(rows, fit.fed), reduced), rows.groups
            )
        except CallError:
            continue
        if not np.all(np.isfinite(observed.values)):
            told = (f"{classes} classes", "a finite value", "NaN or infinity")
            return [finding("nan_on_ordinary_logits", told)], reduced, fit
        weights, residual = weigh(fit.predict(rows)[None], observed)
        limit = 10 * allowed([weight * weights[0] for weight in fit.weights], observed)
        if residual > limit and not fit.clean:
            return [], reduced, fit  # a mistake that depends on the number of classes
        if residual > limit:
            return _explained_wide(probe, reduced, fit, classes)
        ratios[classes] = float(weights[0])
    return _mean_over_classes(ratios, reduced, probe.classes, fit)


def _mean_over_classes(ratios, reduced, classes, fit):
    if all(abs(ratio - 1) < 2e-3 for ratio in ratios.values()):
        return [], reduced, fit
    if all(abs(ratio * size / classes - 1) < 2e-3 for size, ratio in ratios.items()):
        size, ratio = next(iter(ratios.items()))
        told = (
            f"rows of {classes} and {size} classes",
            "the same factor",
            f"a factor {ratio:.4g} = {classes}/{size}",
        )
        names = {"token mean": "mean over V and tokens", "none": "mean over V"}
        reduced = replace(
            reduced, by_size=1 / classes, name=names.get(reduced.name, f"{reduced.name}, over V")
        )
        usual = any(
            other.established for other, _, _ in fit.others
        )  # squares are as often a mean over V
        return [] if usual else [finding("mean_over_vocabulary", told)], reduced, fit
    told = ", ".join(f"{ratio:.4g} at V = {size}" for size, ratio in ratios.items())
    return (
        [finding("vocabulary_scale", ("other vocabulary sizes", "the same factor", told))],
        reduced,
        fit,
    )


def _explained_wide(probe, reduced, fit, classes):
    """What a loss is that looks like `fit` with few classes only."""
    rows = random_rows(classes, teachers=3, students=4, seed=32)

    def observe(rows):
        return Observed(row_values(probe, rows, reduced), rows.groups)

    observed = observe(rows)
    few = rows.take(slice(0, 1))
    better = misread.explain_wide(observed, rows, fit, counting(observe, few))
    if better is not None:
        return [], reduced, better
    told = (f"{classes} classes", "the same loss as with few", "another")
    return [finding("vocabulary_size", told, classes=classes)], reduced, fit


def counting(observe: Callable[[Rows], Observed], rows: Rows) -> tuple[int, ...]:
    """How many classes a row's value depends on, by student and by teacher, where it isn't all of
    them."""
    base = observe(rows).values
    classes = rows.student.shape[-1]
    found = set()
    for side in ("student", "teacher"):
        moved = []
        for k in range(classes):
            logits = getattr(rows, side).copy()
            logits[:, k] += 0.02
            moved.append(observe(rows._replace(**{side: logits})).values)
        counts = (np.abs(np.stack(moved) - base) > 1e-6 * np.abs(base)).sum(0)
        found |= {int(k) for k in np.unique(counts) if 0 < k < classes}
    return tuple(sorted(found)[:3])


def axioms(observe: Callable[[Rows], Observed], rows: Rows) -> list[Finding]:
    """What every loss of logits obeys, for one that is not identified."""
    base = observe(rows).values
    size = np.max(np.abs(base)) + 1e-6
    draw = np.random.default_rng(41)

    def differs(**parts):
        return np.max(np.abs(observe(rows._replace(**parts)).values - base)) > 1e-3 * size

    sides = {side: getattr(rows, side) for side in ("student", "teacher")}
    shifted = [
        side for side, logits in sides.items() if differs(**{side: logits + np.float32(1.7)})
    ]
    found = [
        finding(
            "shift_variant",
            (f"1.7 added to each logit of the {side}", "the same value", "another"),
            side=side,
        )
        for side in shifted
    ]
    away = draw.normal(size=rows.student.shape).astype(np.float32)
    if len(shifted) == 2 and not differs(**{side: logits + away for side, logits in sides.items()}):
        told = ("one random array added to both sides", "another value", "the same")
        found = [
            finding(
                "not_on_menu", told, form="a function of the logits' difference, without a softmax"
            )
        ]
    order = draw.permutation(rows.student.shape[-1])
    labels = np.argsort(order)[rows.labels].astype(np.int32)
    permuted = {side: logits[:, order] for side, logits in sides.items()}
    if differs(**permuted, labels=labels):
        found.append(
            finding(
                "class_order", ("classes renumbered on both sides", "the same value", "another")
            )
        )
    elif not differs(student=permuted["student"]):
        found.append(
            finding(
                "classes_unmatched",
                ("classes of the student renumbered", "another value", "the same"),
            )
        )
    return found


def examine(probe: Probe, fit: Fit | None) -> list[Finding]:
    """A teacher and a student with vocabularies of different size, if the loss takes them."""
    if not probe.takes_teacher:
        return []
    one = random_batch(probe.lead, probe.classes, seed=51)
    more = random_batch(probe.lead, 3, seed=52)
    for side in ("student", "teacher"):
        other = "teacher" if side == "student" else "student"
        wider = one._replace(
            **{side: np.concatenate([getattr(one, side), getattr(more, side)], -1)}
        )
        zeros = np.zeros_like(getattr(more, other))
        try:
            got, cut = (probe.value(_first(batch)) for batch in (wider, one))
            idle = probe.value(_first(one._replace(teacher=one.student)))
            padded, absent = (
                probe.value(
                    _first(
                        wider._replace(**{other: np.concatenate([getattr(one, other), fill], -1)})
                    )
                )
                for fill in (zeros, zeros - 1e9)
            )
        except CallError:
            continue
        if np.allclose(idle, cut):
            return []  # the teacher plays no part
        same = got.shape == padded.shape and np.allclose(got, padded, rtol=1e-4)
        if same and not any(np.allclose(got, right, rtol=1e-3) for right in (cut, absent)):
            told = (
                f"3 classes more of the {side}",
                f"{np.mean(cut):.6g} (cut), or refused",
                float(np.mean(got)),
            )
            return [finding("padded_vocabulary", told, count=3, side=other)]
    return []


def _first(batch):
    return Batch(*(part[0] for part in batch))
