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
from rich.console import Console

import jaxdiv
from experiments.benchmarks import tables
from experiments.common import cli
from experiments.tpu import aot, cost_model
from jaxdiv.fused import chunks

TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "Kind and shape of the TPU slice.")
TOKENS = flags.DEFINE_integer("tokens", 8192, "Tokens, N.", lower_bound=1)
WIDTH = flags.DEFINE_integer("width", 2048, "Of both sides' hidden states, D.", lower_bound=1)
VOCABULARY = flags.DEFINE_integer("vocabulary", 128256, "Classes, V.", lower_bound=2)
CLASSES_OVER = flags.DEFINE_integer(
    "classes_over", 1, "Chips that the heads' classes are spread over.", lower_bound=1
)
CHUNK = flags.DEFINE_integer(
    "chunk", None, "Tokens a chunk; what the library chooses if not given.", lower_bound=1
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


def fused(*sides):
    return jaxdiv.linear_divergence("kl", *sides, chunk=CHUNK.value).mean()


def dense(hidden, head, teacher_hidden, teacher_head):
    sides = (hidden, head), (teacher_hidden, teacher_head)
    logits = (jnp.matmul(*side, preferred_element_type=jnp.float32) for side in sides)
    return jaxdiv.forward_kl(*logits).mean()


def main(_):
    over = mesh()
    tokens, width, classes = TOKENS.value, WIDTH.value, VOCABULARY.value
    records = []
    for name, function in (("fused", fused), ("dense", dense)):
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
    Console(width=120).print(tables.table(records, title=title))
    return 0


if __name__ == "__main__":
    cli.run(main)
