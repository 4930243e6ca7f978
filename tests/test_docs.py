"""Code blocks of the docs run, and the rows of the two migration tables are equalities."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdiv
from tests import runs

TEXT = (runs.ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
OTHERS = ("audit.md", "decoding.md", "fused.md")
PAGES = TEXT + "".join((runs.ROOT / "docs" / page).read_text(encoding="utf-8") for page in OTHERS)

BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGES, flags=re.MULTILINE | re.DOTALL)
RNG = np.random.default_rng(3)
STUDENT, TEACHER = RNG.normal(size=(2, 6, 9)).astype(np.float32)
LABELS = RNG.integers(9, size=6)


def _rows(library):
    rows = re.findall(rf"^\| `({library}.*?)` \| `(jaxdiv\..*?)` \|$", TEXT, flags=re.MULTILINE)
    assert len(rows) >= 6
    return rows


def _evaluate(expression):
    return eval(
        expression, {"jaxdiv": jaxdiv, "student": STUDENT, "teacher": TEACHER, "labels": LABELS}
    )


@pytest.mark.parametrize(
    "block", BLOCKS, ids=[block.split()[1] + str(i) for i, block in enumerate(BLOCKS)]
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trainer_adopts_it_as_written(block):
    assert "assert" in block
    exec(block, {})


@pytest.mark.parametrize(("peer", "replacement"), _rows("optax"))
def test_optaxs_functions_are_ours_in_the_order_given(peer, replacement):
    names = {
        "optax": optax,
        "jax": jax,
        "student": jnp.asarray(STUDENT),
        "teacher": jnp.asarray(TEACHER),
    }
    np.testing.assert_allclose(
        _evaluate(replacement), eval(peer, names | {"labels": jnp.asarray(LABELS)}), rtol=2e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize(("peer", "replacement"), _rows(r"(?:4 \* )?F\."))
def test_pytorchs_functions_are_ours_in_the_order_given(peer, replacement):
    torch = pytest.importorskip("torch")
    names = {
        "F": torch.nn.functional,
        "student": torch.tensor(STUDENT),
        "teacher": torch.tensor(TEACHER),
    }
    names["labels"] = torch.tensor(LABELS)
    np.testing.assert_allclose(_evaluate(replacement), eval(peer, names).numpy(), rtol=2e-5)
