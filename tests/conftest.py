"""Strictness for every test: shapes are checked, ranks are never promoted silently, models run on
CPU.

Most of the suite's time is XLA's compiling. So it compiles with little optimization (XLA_FLAGS=
python -m pytest takes what users get), and what one process has compiled, others read: workers and
the binaries that they start.
"""

import gc
import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers inherit it
    _compiled = tempfile.TemporaryDirectory(prefix="jaxdiv-compiled-")
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": _compiled.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "XDG_CACHE_HOME": _compiled.name,
    }

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

from tests import runs

# XLA ends at once over a flag that it does not know, and later ones do not know the second.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    + (" --xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11) else ""),
)
jax.config.update("jax_numpy_rank_promotion", "raise")
_hook = install_import_hook(
    ["jaxdiv.models", "jaxdiv.data", "jaxdiv.training", "jaxdiv.evaluation"],
    "beartype.beartype",
)

# Every run of the suite draws the same; the slow tests ask for more than that.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("same")

# Compiling makes millions of objects, which each full collection would walk.
gc.set_threshold(50_000, 20, 50)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Frees a file's compiled programs, which the next one cannot use and which take gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """A folder of text files, enough for a smoke run."""
    return runs.write_texts(tmp_path_factory.mktemp("data") / "texts")


# What takes longest comes first, so that no worker is left with it alone at the end.
_LONGEST = (
    "test_divergences.py",
    "test_fused.py",
    "test_smoke.py",
    "test_sweep.py",
    "test_speculative_trained.py",
    "test_resume.py",
    "test_decode.py",
    "test_audit.py",
    "test_meshes.py",
    "test_gap.py",
    "test_watching.py",
    "test_benchmarks.py",
    "test_smoke_variants.py",
    "test_exactness.py",
    "test_compile.py",
    "test_time_breakdown.py",
    "test_training_heads.py",
    "test_speculative_sampling.py",
    "test_speculative_faults.py",
    "test_contributions.py",
    "test_on_policy.py",
    "test_speculative_greedy.py",
    "test_targets.py",
    "test_training.py",
)


def pytest_collection_modifyitems(items):
    items.sort(
        key=lambda item: (
            _LONGEST.index(item.path.name) if item.path.name in _LONGEST else len(_LONGEST)
        )
    )
