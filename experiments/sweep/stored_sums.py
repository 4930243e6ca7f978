"""Files of a cell's measurement: sums over documents of the measures that a sweep compares."""

import dataclasses
import json
import pathlib

import numpy as np

from jaxdiv import files, schema
from jaxdiv.evaluation.measurement import Key, Measurement, Sums
from jaxdiv.schema import DECODED_TAU, GENERATED_TEMPERATURES, SPEED_UP, TAU

FILE = "sums.npz"
# Drafts a round of the tokens per target call.
GAMMAS = (schema.HEADLINE_GAMMA, schema.MAX_MEASURED_GAMMA)
_FIELDS = ("numerator", "denominator", "tokens")


def is_compared(key: Key) -> bool:
    """Returns whether a sweep compares losses by a measure: acceptance on held-out documents,
    tokens a call on the teacher's text."""
    if key.context not in GENERATED_TEMPERATURES:
        return True
    return key.measure in (DECODED_TAU, SPEED_UP) or (key.measure == TAU and key.gamma in GAMMAS)


def write(path: pathlib.PurePath, measurement: Measurement) -> None:
    """Writes the sums of all measures that are compared."""
    pairs = [pair for pair in measurement.sums if is_compared(pair[1])]
    index = [[loss, dataclasses.asdict(key)] for loss, key in pairs]
    arrays = {
        f"{i} {field}": getattr(measurement.sums[pair], field)
        for i, pair in enumerate(pairs)
        for field in _FIELDS
    }
    with files.replacing(path) as temporary:
        np.savez_compressed(temporary, index=json.dumps([measurement.losses, index]), **arrays)


def read(path: pathlib.PurePath) -> Measurement:
    """Reads what `write` wrote. Raises ValueError if the file holds something else."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            losses, index = json.loads(str(arrays["index"]))
            sums = {
                (loss, Key(**key)): Sums(*(arrays[f"{i} {field}"] for field in _FIELDS))
                for i, (loss, key) in enumerate(index)
            }
    # zipfile, zlib and NumPy raise many kinds of errors for a damaged file.
    except Exception as error:
        raise ValueError(
            f"{path} is not what was written: {error}; delete it, and the sweep measures again"
        ) from None
    return Measurement(losses, sums)
