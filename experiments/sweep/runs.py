"""The runs of a sweep: how each begins or resumes, and those that train the teachers."""

import functools

import jax.numpy as jnp
from jax.sharding import Mesh

import jaxdiv
from experiments.sweep.plan import PlannedRun
from jaxdiv.evaluation import contexts, measurement
from jaxdiv.runs import processes, progress
from jaxdiv.runs.specs import RunSpec
from jaxdiv.runs.workdir import DATA_READY, Workdir
from jaxdiv.schema import CORPUS
from jaxdiv.training import run_data, sharding, teacher, teacher_sources
from jaxdiv.training.loop import Monitoring
from jaxdiv.training.run_data import TextData
from jaxdiv.training.state import Model

ENTROPY = "teacher, entropy in nats a token on the documents measured"
_SHARED_FACTS = (DATA_READY, run_data.TOKENIZER)


def begin(
    run: PlannedRun, first: Workdir, monitoring: Monitoring | None = None
) -> tuple[RunSpec, TextData, Model]:
    """Prepares a run's data and teacher, which is trained or taken over.

    Args:
      run: the run to begin, or to resume.
      first: the folder of the base's teacher, whose texts and tokenizer all runs share.
      monitoring: of the teacher's training.

    Returns:
      (spec, data, teacher); the spec has the sizes of a teacher that was taken over.

    Raises:
      ValueError: the run has other texts, or another tokenizer, than `first`. Files may have
        changed since the sweep began, and a teacher that is taken over brings its tokenizer.
    """
    workdir = run.workdir
    config = teacher_sources.resolve(run.config, workdir, typed={})
    workdir.initialize_or_resume(config)
    spec = RunSpec.from_config(config)
    data = run_data.prepare(spec, workdir)
    facts, expected = workdir.facts(), first.facts()
    for name in _SHARED_FACTS:
        if facts[name] != expected[name]:
            raise ValueError(
                f"{workdir.root}: the {name} is {facts[name]}, but {expected[name]} in "
                f"{first.root}; all of a sweep have one corpus and one tokenizer: put that right "
                "and delete the former, or begin another sweep"
            )
    return spec, data, teacher.prepare(spec, workdir, data, monitoring)


def prepare_teacher(
    name: str, run: PlannedRun, first: Workdir, monitoring: Monitoring | None = None
) -> None:
    """Trains a teacher, or resumes, and stores its quality and entropy in its folder's facts."""
    workdir = run.workdir
    if not processes.broadcast_from_first(ENTROPY in workdir.facts()):
        with progress.event_fields(teacher=name):
            spec, data, model = begin(run, first, monitoring)
            nats = entropy(spec, data, model, sharding.make_mesh(spec))
            workdir.add_facts({ENTROPY: round(nats, 4)})
            processes.barrier(f"teacher {name}")
    facts = workdir.facts()
    progress.log(
        f"teacher {name}: entropy {facts[ENTROPY]} nats a token, "
        f"{facts[teacher.QUALITY]} nats a byte"
    )


def entropy(spec: RunSpec, corpus: TextData, model: Model, mesh: Mesh) -> float:
    """Computes the mean entropy of the teacher's next token at temperature 1 over
    `evaluation.documents`, in nats."""
    context = contexts.make(CORPUS, spec.evaluation, corpus, model, mesh)

    @functools.partial(sharding.jit, mesh=mesh)
    def total(params, batch):
        logits = model.with_params(params)(batch["inputs"]).logits
        nats = jaxdiv.cross_entropy(logits, logits) * batch["weights"]
        return sharding.replicate(jnp.sum(nats), mesh)

    rows = sharding.BatchSharding(
        mesh, measurement.rows_at_once(spec, context.inputs.shape[1], mesh)
    )
    batches = run_data.spread(context, rows)
    return sum(float(total(model.params, batch)) for batch in batches) / float(
        context.weights.sum()
    )
