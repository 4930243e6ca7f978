"""The order in which training reads examples: endless, decided by a seed, saved and restored as a
position."""

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
    """Batches `make(numbers)` of examples in an order that `seed` decides, another one each
    epoch."""
    # Grain's epoch e is shuffled by seed + e: neighboring seeds would share their orders.
    spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
    dataset = grain.MapDataset.range(examples).shuffle(seed=spread).repeat()
    # Grain can't take the length of what repeats without end in batches of one.
    dataset = (
        dataset.batch(batch_size)
        if batch_size > 1
        else dataset.map(lambda number: np.array([number]))
    )
    # A batch is made in microseconds: threads would only take the cores from training.
    return iter(
        dataset.map(make).to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    )
