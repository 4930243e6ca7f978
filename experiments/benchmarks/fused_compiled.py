"""Memory and traffic of head and divergence on a TPU that is not there; nothing is run.

  pip install -e '.[train,tpu]'
  python -m experiments.benchmarks.fused_compiled --topology=v5e:2x2
  python -m experiments.benchmarks.fused_compiled --topology=v5e:2x4 --classes_over=8

Value and gradient of `kl` by hidden states and head in bfloat16 are compiled ahead of time, fused
and on whole logits. The table has the memory of one chip as XLA plans it and, with the heads'
classes spread over several chips, what each of them gives to collectives in one step.
"""

from experiments.common import startup

startup.begin(__name__)

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import jaxdiv
from experiments.benchmarks import harness, peers
from experiments.common import cli
from experiments.tpu import aot, cost_model
from jaxdiv.fused import chunks

TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "Kind and shape of the TPU slice.")
TOKENS, WIDTH, VOCABULARY, CHUNK = harness.define_head_sizes(
    tokens=8192, width=2048, vocabulary=128256
)
CLASSES_OVER = flags.DEFINE_integer(
    "classes_over", 1, "Chips that the heads' classes are spread over.", lower_bound=1
)

AXIS = "tensor"


def mesh() -> jax.sharding.Mesh:
    """Returns the chips to compile for. Raises ValueError if the slice has fewer, or is unknown."""
    chips, count = aot.describe_slice(TOPOLOGY.value).devices, CLASSES_OVER.value
    if len(chips) < count:
        raise ValueError(
            f"--topology={TOPOLOGY.value} has {len(chips)} chips, --classes_over={count}"
        )
    axis_types = (jax.sharding.AxisType.Auto,)
    return jax.sharding.Mesh(np.array(chips[:count]), (AXIS,), axis_types=axis_types)


def compiled(function, over: jax.sharding.Mesh) -> jax.stages.Compiled:
    """Compiles value and gradients; every chip has all hidden states and its share of classes."""
    whole, by_class = (jax.NamedSharding(over, spec) for spec in (jax.P(), jax.P(None, AXIS)))
    tokens, width, classes = TOKENS.value, WIDTH.value, VOCABULARY.value
    hidden = jax.ShapeDtypeStruct((tokens, width), jnp.bfloat16, sharding=whole)
    head = jax.ShapeDtypeStruct((width, classes), jnp.bfloat16, sharding=by_class)
    shardings = (whole, (whole, by_class))
    step = jax.jit(jax.value_and_grad(function, argnums=(0, 1)), out_shardings=shardings)
    return step.lower(hidden, head, hidden, head).compile()


def main(_):
    over, dense = mesh(), peers.on_whole_logits(jaxdiv.forward_kl)
    tokens, width, classes = TOKENS.value, WIDTH.value, VOCABULARY.value
    functions = {
        "fused": lambda *sides: jaxdiv.linear_divergence("kl", *sides, chunk=CHUNK.value).mean(),
        "dense": lambda *sides: dense(*sides).mean(),
    }
    records = []
    for name, function in functions.items():
        program = compiled(function, over)
        memory = aot.Memory.of(program)
        collectives = cost_model.estimate(program.as_text()).collectives.values()
        traffic = sum(each.size for each in collectives) / (tokens * width * 4)
        records.append(
            {
                "": name,
                "temporaries, GB a chip": f"{memory.temporaries / 1e9:.2f}",
                "arguments": f"{memory.arguments / 1e9:.2f}",
                "outputs": f"{memory.outputs / 1e9:.2f}",
                "added up, × N·D·4 bytes": f"{traffic:.2f}",
            }
        )
    title = (
        f"{TOPOLOGY.value}, classes over {over.size}: N = {tokens}, D = {width}, V = {classes}, "
        f"bfloat16, chunks of {CHUNK.value or chunks.size(tokens, classes, width)}"
    )
    harness.print_table(records, width=120, title=title)
    return 0


if __name__ == "__main__":
    cli.run(main)
