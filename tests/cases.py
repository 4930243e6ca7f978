"""Rows of logits at the edges, stacked to [cases, V], so that one compilation serves them all."""

import numpy as np

V = 24
RNG = np.random.default_rng(0)
_T, _S = RNG.normal(size=(2, V)) * 2


def _absent(logits, *classes):
    logits = np.array(logits)
    logits[list(classes)] = -np.inf
    return logits


def _only(k):
    return np.where(np.arange(V) == k, 1.0, -np.inf)


_WIDE = 60 * np.where(np.arange(V) % 3 == 0, 1, -1)

# name: (student, teacher); of these every loss is finite
FINITE = {
    "random": (_S, _T),
    "close": (_T + 1e-2 * _S, _T),
    "same": (_T, _T),
    "uniform": (np.zeros(V), _T),
    "shifted": (_S + 100, _T),
    "ties": (np.zeros(V), np.zeros(V)),
    "scale 60": (_WIDE, np.roll(_WIDE, 1)),
    "scale 1e4": (1e4 * np.sign(_S), 1e4 * np.sign(_T)),
    "one-hot both": (_only(4), _only(4)),
    "padded both": (_absent(_S, 0, 7, 23), _absent(_T, 0, 7, 23)),
}
# of these a loss may be infinite, its gradient never NaN
SUPPORT = {
    "padded student": (_absent(_S, 0, 7), _T),
    "padded teacher": (_S, _absent(_T, 3, 9)),
    "padded apart": (_absent(_S, 0, 7), _absent(_T, 3, 9)),
    "one-hot teacher": (_S, _only(4)),
    "disjoint": (_only(4), _only(5)),
    "nothing": (np.full(V, -np.inf), np.full(V, -np.inf)),
}


def stacked(cases):
    """Student and teacher [cases, V], float32."""
    student, teacher = (
        np.stack(side).astype(np.float32) for side in zip(*cases.values(), strict=True)
    )
    return student, teacher


def labels(cases):
    """Labels [cases] that exist in every case's student."""
    return np.full(len(cases), 4, np.int32)
