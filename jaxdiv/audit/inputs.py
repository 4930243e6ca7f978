"""Designed inputs: rows of ordinary size, and batches in which the same row stands everywhere."""

from typing import NamedTuple

import numpy as np

SEED = 0


class Rows(NamedTuple):
    """K rows: student and teacher [K, V], labels [K], and the group [K] of rows that share a
    teacher."""

    student: np.ndarray
    teacher: np.ndarray
    labels: np.ndarray
    groups: np.ndarray

    def take(self, index) -> "Rows":
        return Rows(*(part[index] for part in self))


class Batch(NamedTuple):
    """M inputs of the audited function, each [*lead, V] and labels, mask [*lead]."""

    student: np.ndarray
    teacher: np.ndarray
    labels: np.ndarray
    mask: np.ndarray


def random_rows(
    classes: int, teachers: int = 8, students: int = 5, scale: float = 1.5, seed: int = SEED
) -> Rows:
    """Each of `teachers` distributions with `students` students; logits are float32 of O(1)."""
    draw = np.random.default_rng(seed)
    count = teachers * students
    groups = np.repeat(np.arange(teachers), students)
    teacher = draw.normal(size=(teachers, classes))[groups] * scale
    student = draw.normal(size=(count, classes)) * scale + 0.3 * teacher
    labels = draw.integers(classes, size=count)
    return Rows(
        student.astype(np.float32), teacher.astype(np.float32), labels.astype(np.int32), groups
    )


def random_batch(lead: tuple[int, ...], classes: int, seed: int = SEED) -> Batch:
    """One input [1, *lead, V] whose rows all differ."""
    draw = np.random.default_rng(seed + 100)
    student, teacher = (1.5 * draw.normal(size=(1, *lead, classes)) for _ in range(2))
    labels = draw.integers(classes, size=(1, *lead))
    return batch(student, teacher + 0.3 * student, labels)


def batch(student, teacher, labels, mask=None) -> Batch:
    student, teacher = np.asarray(student, np.float32), np.asarray(teacher, np.float32)
    mask = np.ones(student.shape[:-1], np.float32) if mask is None else np.asarray(mask, np.float32)
    return Batch(student, teacher, np.asarray(labels, np.int32), mask)


def tiled(rows: Rows, lead: tuple[int, ...]) -> Batch:
    """Inputs [K, *lead, V], each of one row everywhere: neither shifts nor other rows can be seen
    in them."""

    def spread(part):
        expanded = part.reshape(part.shape[:1] + (1,) * len(lead) + part.shape[1:])
        return np.broadcast_to(expanded, part.shape[:1] + lead + part.shape[1:])

    return batch(spread(rows.student), spread(rows.teacher), spread(rows.labels))


def repeated(one: Batch, count: int) -> Batch:
    """Copies of one input, free to be changed."""
    return Batch(*(np.repeat(part, count, axis=0) for part in one))


def joined(batches) -> Batch:
    return Batch(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))


def flattened(one: Batch, n: int) -> Batch:
    """One input as [1, n, V]."""
    classes = one.student.shape[-1]
    logits = (one.student.reshape(1, n, classes), one.teacher.reshape(1, n, classes))
    return Batch(*logits, one.labels.reshape(1, n), one.mask.reshape(1, n))


def shaped(inputs: Batch, lead: tuple[int, ...]) -> Batch:
    """Inputs [M, n, V] as [M, *lead, V]."""
    return Batch(*(part.reshape(len(part), *lead, *part.shape[2:]) for part in inputs))
