"""What a sweep keeps of a cell's measurement: sums over each document of the measures that it
compares."""

import dataclasses
import json
import pathlib

import numpy as np

from jaxdiv import files
from jaxdiv.evaluation.measurement import Key, Measurement, Sums
from jaxdiv.schema import GENERATED_TEMPERATURES

FILE = "sums.npz"
GAMMAS = (4, 8)  # drafts a round of the tokens a target call
DECODED_GAMMA = 4
_SIDES = ("numerator", "denominator", "tokens")


def compared(key: Key) -> bool:
    """Whether a sweep compares losses by a measure: acceptance on held-out documents, tokens a call
    on own text."""
    if key.context in GENERATED_TEMPERATURES:
        return key.measure in ("decoded_tau", "speed_up") or (
            key.measure == "tau" and key.gamma in GAMMAS
        )
    return True


def write(path: pathlib.PurePath, measured: Measurement) -> None:
    """Writes what is compared of `measured`."""
    kept = {pair: sums for pair, sums in measured.sums.items() if compared(pair[1])}
    index = [[loss, dataclasses.asdict(key)] for loss, key in kept]
    arrays = {
        f"{i} {side}": getattr(sums, side)
        for i, sums in enumerate(kept.values())
        for side in _SIDES
    }
    with files.replacing(path) as temporary:
        np.savez_compressed(temporary, index=json.dumps([measured.losses, index]), **arrays)


def read(path: pathlib.PurePath) -> Measurement:
    """What `write` wrote. Raises ValueError if the file holds something else."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            losses, index = json.loads(str(found["index"]))
            sums = {
                (loss, Key(**key)): Sums(*(found[f"{i} {side}"] for side in _SIDES))
                for i, (loss, key) in enumerate(index)
            }
    except (
        Exception
    ) as error:  # zipfile, zlib and NumPy have many names for a file that is none of theirs
        raise ValueError(
            f"{path} is not what was written: {error}; delete it, and the sweep measures again"
        ) from None
    return Measurement(losses, sums)
