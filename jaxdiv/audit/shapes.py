"""Readings with a wrong distribution: truncated, padded, clamped, smoothed, rolled."""

import itertools

import numpy as np

from jaxdiv.audit.forms import log_softmax
from jaxdiv.audit.readings import (
    Reading,
    Take,
    clean_log,
    double_after_log,
    exp_of,
    of_log,
    softmax,
)


def _epsilon(size: float, clip: bool, again: bool) -> Take:
    def take(x, temperature, other):
        p = softmax(x / temperature)
        p = np.maximum(p, size) if clip else p + size
        return np.log(p / p.sum(-1, keepdims=True) if again else p)

    return take


def _top_log(count: int, by_other: bool, minimum: float) -> Take:
    def take(x, temperature, other):
        ranked = other if by_other else x
        least = -np.sort(-ranked, axis=-1)[..., count - 1, None]
        return log_softmax(np.where(ranked >= least, x / temperature, minimum))

    return take


def _top_kept(count: int, by_other: bool, take: Take) -> Take:
    """Probabilities of the largest alone, not renormalized."""

    def kept(x, temperature, other):
        ranked = other if by_other else x
        least = -np.sort(-ranked, axis=-1)[..., count - 1, None]
        return np.where(ranked >= least, take(x, temperature, other), 0)

    return kept


def _with_zeros(heated, count):
    return log_softmax(np.concatenate([heated, np.zeros((*heated.shape[:-1], count))], -1))


def _padded_log(count: int) -> Take:
    def take(x, temperature, other):
        return _with_zeros(x / temperature, count)[..., : x.shape[-1]]

    return take


def _padded_all(count: int) -> Take:
    """As `_padded_log`, with the padding's own terms in the sum."""

    def take(x, temperature, other):
        return _with_zeros(x / temperature, count)

    return take


def _smoothed_log(share: float) -> Take:
    return lambda x, t, o: np.log((1 - share) * softmax(x / t) + share / x.shape[-1])


def _without(where: slice) -> Take:
    return lambda x, t, o: log_softmax(x[..., where] / t)


def joint_readings(top: tuple[int, ...], kept: tuple[int, ...]) -> list[Reading]:
    """Wrong distributions, in which probability and logarithm agree.

    Args:
      top: sizes of a renormalized truncation to try.
      kept: of one that is not renormalized.
    """
    found = [
        Reading("double_softmax", *of_log(double_after_log)),
        Reading("double_softmax", *of_log(lambda x, t, o: log_softmax(softmax(softmax(x / t))))),
        Reading("negated_logits", *of_log(lambda x, t, o: log_softmax(-x / t))),
        *(
            Reading(
                "classes_misaligned",
                *of_log(lambda x, t, o, by=by: np.roll(clean_log(x, t, o), by, -1)),
                (("shift", by),),
            )
            for by in (1, -1)
        ),
    ]
    found += [_smoothed_reading(share) for share in (0.01, 0.05, 0.1, 0.2, 0.3)]
    for size in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7):
        found += [_clamped_reading(size, *kind) for kind in itertools.product(*[(False, True)] * 3)]
    return found + _truncated(top, kept)


def _smoothed_reading(share):
    details = (("share", share),)
    return Reading("smoothed", *of_log(_smoothed_log(share)), details, share, _smoothed_reading)


def _clamped_reading(size, clip, again, log_alone):
    """A clamp at `size`, `again` normalized or not, of probability and logarithm or of the
    logarithm alone."""
    how = f" at {size:.3g}" if clip else f" by adding {size:.3g}"
    prob, log = of_log(_epsilon(size, clip, again))
    prob = exp_of(clean_log) if log_alone else prob
    return Reading(
        "clamped_log",
        prob,
        log,
        (("how", how),),
        size,
        lambda other: _clamped_reading(other, clip, again, log_alone),
    )


def _truncated(top, kept):
    found = []
    for by_other in (False, True):
        found += [
            Reading("top_k", *make(k, by_other), _top_details(k, how))
            for how, k, make in _top_ways(top, kept)
        ]
    return found


def _top_details(k, how):
    return ("k", k), ("how", how)


def _top_ways(top, kept):
    """(how, k, from k and whose ranking to the role's takes)."""
    for k in top:
        yield "renormalized to 1", k, lambda k, by_other: of_log(_top_log(k, by_other, -200.0))
        yield "the rest set to 0", k, lambda k, by_other: of_log(_top_log(k, by_other, 0.0))
    for k in kept:
        yield (
            "not renormalized",
            k,
            lambda k, by_other: (_top_kept(k, by_other, exp_of(clean_log)), clean_log),
        )


def both_readings(
    classes: int, top: tuple[int, ...], kept: tuple[int, ...]
) -> list[tuple[Reading, Reading]]:
    """(teacher, student) pairs in which the two sides share one mistake of shape."""
    found = []
    for how, k, make in _top_ways(top, kept):
        for by_others in ((False, False), (False, True), (True, False)):
            found.append(
                tuple(
                    Reading("top_k", *make(k, by_other), _top_details(k, how))
                    for by_other in by_others
                )
            )
    for count in _pad_counts(classes):
        for take in (_padded_log(count), _padded_all(count)):
            one = Reading("padded_vocabulary", *of_log(take), (("count", count),))
            found.append((one, one))
    for which, where in (("last", slice(None, -1)), ("first", slice(1, None))):
        one = Reading("classes_dropped", *of_log(_without(where)), (("which", which),))
        found.append((one, one))
    return found


def one_sided_padding(classes: int) -> list[Reading]:
    return [
        Reading("padded_vocabulary", *of_log(_padded_log(count)), (("count", count),))
        for count in _pad_counts(classes)
    ]


def _pad_counts(classes):
    return sorted(
        set(range(1, 25)) | {-classes % multiple for multiple in (32, 64, 128, 256, 512)} - {0}
    )
