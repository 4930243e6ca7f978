"""Strictness for every test: shapes are checked, ranks are never promoted silently, models run on CPU."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")
_hook = install_import_hook(["jaxdiv.models", "jaxdiv.data", "jaxdiv.training"], "beartype.beartype")
