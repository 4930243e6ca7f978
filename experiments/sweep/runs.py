"""The runs of a sweep: how each begins or resumes, and those that train teachers and tune learning
rates."""

import functools
from collections.abc import Mapping

import jax.numpy as jnp
import pandas as pd
from jax.sharding import Mesh

import jaxdiv
from experiments.sweep.plan import PlannedRun
from jaxdiv import files
from jaxdiv.evaluation import contexts, measurement
from jaxdiv.runs import metrics, processes, progress
from jaxdiv.runs.specs import RunSpec
from jaxdiv.runs.workdir import DATA_READY, Workdir
from jaxdiv.schema import ACCEPTANCE, CORPUS
from jaxdiv.training import run_data, sharding, students, teacher, teacher_sources
from jaxdiv.training.loop import Monitoring
from jaxdiv.training.run_data import TextData
from jaxdiv.training.state import Model

ENTROPY = "teacher, entropy in nats a token on the documents measured"
TUNED = "reached.json"  # each loss's acceptance after tuning, under the name in folders in use
_DIVERGED = -1.0  # less than any acceptance


def begin(run: PlannedRun, monitoring: Monitoring | None = None) -> tuple[RunSpec, TextData, Model]:
    """Begins or resumes a run with its data and its teacher, which is trained or taken over.

    Args:
      run: the run.
      monitoring: of the teacher's training.

    Returns:
      (spec, data, teacher); the spec has the sizes of a teacher that was taken over.

    Raises:
      ValueError: the run has other texts, or another tokenizer, than `run.first`. Files may have
        changed since the sweep began, and a teacher that is taken over brings its tokenizer.
    """
    workdir, first = run.workdir, run.first
    config = teacher_sources.resolve(run.config, workdir, typed={})
    workdir.initialize_or_resume(config)
    spec = RunSpec.from_config(config)
    data = run_data.prepare(spec, workdir)
    facts, expected = workdir.facts(), first.facts()
    for name in (DATA_READY, run_data.TOKENIZER):
        if facts[name] != expected[name]:
            raise ValueError(
                f"{workdir.root}: the {name} is {facts[name]}, but {expected[name]} in "
                f"{first.root}; all of a sweep have one corpus and one tokenizer: put that right "
                "and delete the former, or begin another sweep"
            )
    return spec, data, teacher.prepare(spec, workdir, data, monitoring)


def prepare_teacher(name: str, run: PlannedRun, monitoring: Monitoring | None = None) -> None:
    """Trains a teacher, or resumes, and stores its quality and entropy in its folder's facts."""
    workdir = run.workdir
    if not processes.broadcast_from_first(ENTROPY in workdir.facts()):
        with progress.event_fields(teacher=name):
            spec, data, model = begin(run, monitoring)
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

    count = measurement.rows_at_once(spec, context.inputs.shape[1], mesh)
    batches = run_data.spread(context, sharding.BatchSharding(mesh, count))
    nats = sum(float(total(model.params, batch)) for batch in batches)
    return nats / float(context.weights.sum())


def tune(
    student: str,
    tuning_runs: Mapping[float, PlannedRun],
    losses: list[str],
    monitoring: Monitoring | None = None,
) -> dict[str, float]:
    """Returns the learning rate of each loss after which acceptance on the validation batch ends
    highest.

    Args:
      student: its name, for messages.
      tuning_runs: learning rate to run; finished ones are read.
      losses: to tune.
      monitoring: of the students' training.
    """
    acceptance = {}
    for rate, run in tuning_runs.items():
        name = run.workdir.root.name
        with progress.event_fields(tuning=name):
            path = run.workdir.root / TUNED
            if not processes.broadcast_from_first(path.exists()):
                spec, data, model = begin(run)
                students.train(spec, run.workdir, data, model, monitoring)
                if processes.is_first():
                    files.write_json(path, final_acceptance(run.workdir))
                processes.barrier(f"tuned {name}")
            acceptance[rate] = read_tuned(run.workdir, losses)
    rates = best_rates(acceptance)
    ends = [loss for loss, rate in rates.items() if rate in (min(acceptance), max(acceptance))]
    progress.log(
        f"learning rates of {student}: "
        f"{', '.join(f'{loss} {rate:g}' for loss, rate in rates.items())}; "
        f"at an end of those tried: {', '.join(ends) or 'none'}"
    )
    return rates


def final_acceptance(workdir: Workdir) -> dict[str, float]:
    """Reads acceptance after the last step from the curves; losses that diverged are left out."""
    stage = workdir.spec().student_stage
    curves = metrics.read_curves(workdir.curves, stage.name, list(stage.seeds))
    last = curves[curves["metric"].eq(ACCEPTANCE) & curves["step"].eq(stage.steps)]
    return last.groupby("loss")["value"].mean().to_dict()


def read_tuned(workdir: Workdir, losses: list[str]) -> dict[str, float]:
    """Reads the final acceptance of each loss of a finished run; a loss that diverged has less than
    any other. Raises ValueError if the run lacks a loss."""
    tuned = workdir.spec().student_stage.members
    if absent := [loss for loss in losses if loss not in tuned]:
        raise ValueError(
            f"{workdir.root} was tuned without {', '.join(absent)}; delete it to have it tuned "
            "again"
        )
    acceptance = files.read_json(workdir.root / TUNED)
    return {loss: acceptance.get(loss, _DIVERGED) for loss in losses}


def best_rates(acceptance: Mapping[float, Mapping[str, float]]) -> dict[str, float]:
    """Returns the rate at which each loss reached the highest acceptance, the smaller of equals;
    the smallest rate if its students diverged at all of them.

    Args:
      acceptance: learning rate to loss to acceptance, as `read_tuned` returns it.
    """
    return pd.DataFrame(acceptance).sort_index(axis=1).idxmax(axis=1).to_dict()
