"""The teachers of a sweep: each trained in a folder of its own, with how unsure it is."""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

import jaxdiv
from experiments.sweep import runs
from experiments.sweep.plan import Plan
from jaxdiv.data import pipeline
from jaxdiv.evaluation import contexts, measurement
from jaxdiv.runs import processes, progress, sharding
from jaxdiv.training import run_data, teacher
from jaxdiv.training.run_data import TextData
from jaxdiv.training.state import Model

ENTROPY = "teacher, entropy in nats a token on the documents measured"


def prepare(plan: Plan, name: str, **watched: Any) -> None:
    """Trains the teacher `name`, or goes on with it; its folder's facts have its quality and
    entropy then.

    `watched` is what `loop.run_stage` takes of `profile` and `also`.
    """
    run = plan.teacher_run(name)
    if not processes.broadcast_from_first(ENTROPY in run.facts()):
        with progress.event_fields(teacher=name):
            config, data, guide = runs.begin(plan, run, plan.teacher_config(name), **watched)
            run.add_facts({ENTROPY: round(entropy(config, data, guide, sharding.make(config)), 4)})
            processes.barrier(f"teacher {name}")
    facts = run.facts()
    progress.log(
        f"teacher {name}: entropy {facts[ENTROPY]} nats a token, {facts[teacher.QUALITY]} nats a byte"
    )


def entropy(config: Mapping, corpus: TextData, guide: Model, mesh: Mesh) -> float:
    """Of what the teacher says of the next token at temperature 1, nats: the mean over
    `evaluation.documents`."""
    context = contexts.make("corpus", config, corpus, guide, mesh)

    @functools.partial(sharding.jit, mesh=mesh)
    def total(params, batch):
        logits = guide.with_params(params)(batch["inputs"]).logits
        return sharding.everywhere(
            jnp.sum(jaxdiv.cross_entropy(logits, logits) * batch["weights"]), mesh
        )

    rows = sharding.Rows(mesh, measurement.rows_at_once(config, context.inputs.shape[1], mesh))
    blocks = pipeline.blocks([getattr(context, part) for part in run_data.BATCH_FIELDS], rows.count)
    summed = sum(float(total(guide.params, rows.spread(run_data.batch(block)))) for block in blocks)
    return summed / float(context.weights.sum())
