"""Fair timings in one process: contestants take turns, so that they share every disturbance."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def interleaved(
    contestants: Mapping[str, Callable[[], Any]], *, rounds: int
) -> dict[str, np.ndarray]:
    """Returns the seconds of each call, [rounds] by name.

    Each round calls every contestant once and waits for its result. The first call of each, which
    compiles, does not count. Compare by medians, or round by round.
    """
    for call in contestants.values():
        jax.block_until_ready(call())
    seconds = {name: np.zeros(rounds) for name in contestants}
    for number in range(rounds):
        for name, call in contestants.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name][number] = time.perf_counter() - start
    return seconds
