"""A program with 8 host devices: rows over one axis, classes over the other, as on one device."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose

import jaxdiv

TEXTS = (
    "ce", "ce_argmax", "kl", "rkl", "jsd(beta=0.3)", "tv", "nla", "lk_hybrid", "renyi", "pearson",
    "akl", "z_loss",
)  # fmt: skip


def main():
    assert jax.device_count() == 8
    rng = np.random.default_rng(0)
    teacher = jnp.asarray(rng.normal(size=(8, 64)), jnp.float32)
    student = teacher + jnp.asarray(rng.normal(size=(8, 64)), jnp.float32)
    sharding = jax.NamedSharding(jax.make_mesh((4, 2), ("data", "tensor")), jax.P("data", "tensor"))

    @jax.jit
    def every(student, teacher):
        def one(text):
            return jax.value_and_grad(lambda s: jaxdiv.get(text)(s, teacher).sum())(student)

        return {text: one(text) for text in TEXTS}

    plain = every(student, teacher)
    spread = every(*(jax.device_put(side, sharding) for side in (student, teacher)))
    for text in TEXTS:
        assert_allclose(spread[text][0], plain[text][0], rtol=2e-6, err_msg=text)
        assert_allclose(spread[text][1], plain[text][1], rtol=1e-5, atol=2e-7, err_msg=text)


if __name__ == "__main__":
    main()
