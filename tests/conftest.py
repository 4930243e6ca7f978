"""Strictness for every test: shapes are checked, ranks are never promoted silently, models run on CPU."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")
_hook = install_import_hook(["jaxdiv.models", "jaxdiv.data", "jaxdiv.training"], "beartype.beartype")

# What takes longest comes first, so that no worker is left with it alone at the end.
_LONGEST = (
    "test_smoke.py",
    "test_divergences.py",
    "test_audit.py",
    "test_resume.py",
    "test_speculative_trained.py",
    "test_speculative_sampling.py",
    "test_exactness.py",
    "test_smoke_variants.py",
    "test_refusals.py",
    "test_contributions.py",
    "test_decode.py",
    "test_speculative_texts.py",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: _LONGEST.index(item.path.name) if item.path.name in _LONGEST else len(_LONGEST))
