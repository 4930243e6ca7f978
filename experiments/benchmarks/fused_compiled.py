"""What head and divergence take on a TPU that is not there: compiled for it ahead of time, nothing
is run.

  pip install -e '.[train,tpu]'
  python -m experiments.benchmarks.fused_compiled --topology=v5e:2x2
  python -m experiments.benchmarks.fused_compiled --topology=v5e:2x4 --classes_over=8

Value and gradient of `kl` by hidden states and head in bfloat16, fused and on whole logits: memory
  of one chip as XLA
plans it and, with the heads' classes spread over several chips, what each of these sends to be
added up in one step.
"""

from experiments.common import startup

startup.begin(__name__)

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

import jaxdiv
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
    """The chips that are compiled for. Raises ValueError if there is no such slice, or it has
    fewer."""
    chips = aot.describe_slice(TOPOLOGY.value).devices
    if len(chips) < CLASSES_OVER.value:
        raise ValueError(
            f"--topology={TOPOLOGY.value} has {len(chips)} chips, --classes_over={CLASSES_OVER.value}"
        )
    axis_types = (jax.sharding.AxisType.Auto,)
    return jax.sharding.Mesh(np.array(chips[: CLASSES_OVER.value]), (AXIS,), axis_types=axis_types)


def compiled(function, over: jax.sharding.Mesh):
    """Its value and gradients, for hidden states that every chip has and heads of which each has
    its classes."""
    whole, by_class = (jax.NamedSharding(over, spec) for spec in (jax.P(), jax.P(None, AXIS)))

    def shape(*sizes, sharding):
        return jax.ShapeDtypeStruct(sizes, jnp.bfloat16, sharding=sharding)

    hidden = shape(TOKENS.value, WIDTH.value, sharding=whole)
    head = shape(WIDTH.value, VOCABULARY.value, sharding=by_class)
    run = jax.jit(
        jax.value_and_grad(function, argnums=(0, 1)), out_shardings=(whole, (whole, by_class))
    )
    return run.lower(hidden, head, hidden, head).compile()


def fused(*sides):
    return jaxdiv.linear_divergence("kl", *sides, chunk=CHUNK.value).mean()


def dense(hidden, head, teacher_hidden, teacher_head):
    sides = (hidden, head), (teacher_hidden, teacher_head)
    return jaxdiv.forward_kl(
        *(jnp.matmul(*side, preferred_element_type=jnp.float32) for side in sides)
    ).mean()


def added_up(program: jax.stages.Compiled) -> float:
    """Bytes of the arrays that a chip gives to the program's collectives."""
    return sum(kind.size for kind in cost_model.estimate(program.as_text()).collectives.values())


def main(_):
    over = mesh()
    chunk = CHUNK.value or chunks.size(TOKENS.value, VOCABULARY.value, WIDTH.value)
    title = (
        f"{TOPOLOGY.value}, classes over {over.size}: N = {TOKENS.value}, D = {WIDTH.value}, V = {VOCABULARY.value}, "
        f"bfloat16, chunks of {chunk}"
    )
    made = Table(title=title, title_justify="left")
    for column in ("", "temporaries, GB a chip", "arguments", "outputs", "added up, × N·D·4 bytes"):
        made.add_column(column, justify="right" if column else "left")
    for name, function in (("fused", fused), ("dense", dense)):
        program = compiled(function, over)
        memory = aot.Memory.of(program)
        sizes = memory.temporaries, memory.arguments, memory.outputs
        traffic = added_up(program) / (TOKENS.value * WIDTH.value * 4)
        made.add_row(name, *(f"{size / 1e9:.2f}" for size in sizes), f"{traffic:.2f}")
    Console(width=120).print(made)
    return 0


if __name__ == "__main__":
    cli.run(main)
