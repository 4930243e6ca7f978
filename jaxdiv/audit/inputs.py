"""Designed inputs: rows of ordinary size, and batches in which the same row stands everywhere."""

from typing import NamedTuple

import numpy as np


class ProbeRows(NamedTuple):
    """K rows: logits [K, V] of student and teacher, labels [K], and the teacher's index [K]."""

    student: np.ndarray
    teacher: np.ndarray
    labels: np.ndarray
    groups: np.ndarray

    def take(self, index) -> "ProbeRows":
        return ProbeRows(*(part[index] for part in self))

    def first_classes(self, count: int | None) -> "ProbeRows":
        return self._replace(student=self.student[:, :count], teacher=self.teacher[:, :count])


class Batch(NamedTuple):
    """M inputs of the audited function: logits [M, *lead, V], and labels and mask [M, *lead]."""

    student: np.ndarray
    teacher: np.ndarray
    labels: np.ndarray
    mask: np.ndarray

    def one(self, index: int = 0) -> "Batch":
        return Batch(*(part[index] for part in self))

    def with_row(self, side: str, index: tuple[int, ...], other: "Batch") -> "Batch":
        """Returns inputs in which one side has the other batch's row at an index of `lead`."""
        part, where = getattr(self, side).copy(), (slice(None), *index)
        part[where] = getattr(other, side)[where]
        return self._replace(**{side: part})


def batch(student, teacher, labels) -> Batch:
    mask = np.ones(np.shape(labels), np.float32)
    return Batch(np.float32(student), np.float32(teacher), np.int32(labels), mask)


def random_rows(classes: int, teachers: int = 8, students: int = 5, seed: int = 0) -> ProbeRows:
    """Returns rows of `teachers` distributions with `students` students each, of logits of O(1)."""
    draw = np.random.default_rng(seed)
    groups = np.repeat(np.arange(teachers), students)
    teacher = 1.5 * draw.normal(size=(teachers, classes))[groups]
    student = 1.5 * draw.normal(size=(len(groups), classes)) + 0.3 * teacher
    labels = draw.integers(classes, size=len(groups))
    return ProbeRows(np.float32(student), np.float32(teacher), np.int32(labels), groups)


def random_batch(lead: tuple[int, ...], classes: int, seed: int = 0) -> Batch:
    """Returns one input [1, *lead, V] whose rows all differ."""
    draw = np.random.default_rng(seed + 100)
    student, teacher = (1.5 * draw.normal(size=(1, *lead, classes)) for _ in range(2))
    labels = draw.integers(classes, size=(1, *lead))
    return batch(student, teacher + 0.3 * student, labels)


def tile(rows: ProbeRows, lead: tuple[int, ...]) -> Batch:
    """Returns inputs [K, *lead, V], each of one row everywhere.

    Neither a shift of positions nor the presence of other rows can be seen in them.
    """

    def spread(part):
        expanded = np.expand_dims(part, tuple(range(1, 1 + len(lead))))
        return np.broadcast_to(expanded, part.shape[:1] + lead + part.shape[1:])

    return batch(*map(spread, rows[:3]))


def join(batches) -> Batch:
    return Batch(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))
