"""The endless order of training examples: a seed decides it, and a position restores it."""

from collections.abc import Callable, Mapping

import grain
import numpy as np
from jaxtyping import Int


def endless(
    examples: int,
    batch_size: int,
    seed: int,
    make: Callable[[Int[np.ndarray, " B"]], Mapping[str, np.ndarray]],
) -> grain.DatasetIterator:
    """Iterates over batches `make(numbers)` of examples; each epoch has its own order."""
    # Grain shuffles epoch e by seed + e: neighboring seeds would share their orders.
    spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
    dataset = grain.MapDataset.range(examples).shuffle(seed=spread).repeat()
    # Grain can't take the length of an endless data set in batches of one.
    dataset = (
        dataset.batch(batch_size)
        if batch_size > 1
        else dataset.map(lambda number: np.array([number]))
    )
    # A batch takes microseconds: threads would only take cores from training.
    return iter(
        dataset.map(make).to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    )
