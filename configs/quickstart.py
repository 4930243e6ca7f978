"""All ten losses, three seeds each, on the Python standard library's own sources.

python -m experiments.distill --config=configs/quickstart.py --workdir=runs/quickstart

These are the defaults of all keys, which docs/config.md lists with their meaning.
"""

import ml_collections

from jaxdiv.runs import config as run_config


def get_config():
    return ml_collections.ConfigDict(run_config.defaults())
