"""Each loss's learning rate for each kind of student, from the curves of a few short runs."""

from collections.abc import Mapping

from experiments.sweep import runs
from experiments.sweep.plan import PlannedRun
from jaxdiv import files
from jaxdiv.runs import metrics, processes, progress
from jaxdiv.runs.specs import StageSpec
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import students
from jaxdiv.training.loop import Monitoring

FILE = "reached.json"
DIVERGED = -1.0  # less than any acceptance
AcceptanceByRate = Mapping[float, Mapping[str, float]]  # learning rate to loss to acceptance


def rates(
    student: str,
    tuning_runs: Mapping[float, PlannedRun],
    losses: list[str],
    first: Workdir,
    monitoring: Monitoring | None = None,
) -> dict[str, float]:
    """Returns the learning rate of each loss after which acceptance on the validation batch ends
    highest.

    Args:
      student: its name, for messages.
      tuning_runs: learning rate to run; finished ones are read.
      losses: to tune.
      first: the folder of the base's teacher, for `runs.begin`.
      monitoring: of every training.
    """
    acceptance = {}
    for rate, run in tuning_runs.items():
        name = run.workdir.root.name
        with progress.event_fields(tuning=name):
            path = run.workdir.root / FILE
            if not processes.broadcast_from_first(path.exists()):
                spec, data, model = runs.begin(run, first)
                students.train(spec, run.workdir, data, model, monitoring)
                if processes.is_first():
                    files.write_json(path, final_acceptance(run.workdir, spec.student_stage))
                processes.barrier(f"tuned {name}")
            acceptance[rate] = read(run.workdir, losses)
    tuned = best(acceptance, losses)
    ends = [loss for loss, rate in tuned.items() if rate in (min(acceptance), max(acceptance))]
    progress.log(
        f"learning rates of {student}: "
        f"{', '.join(f'{loss} {rate:g}' for loss, rate in tuned.items())}; "
        f"at an end of those tried: {', '.join(ends) or 'none'}"
    )
    return tuned


def best(acceptance: AcceptanceByRate, losses: list[str]) -> dict[str, float]:
    """Returns the rate at which each loss reached the highest acceptance, the smaller of equals;
    the smallest rate if its students diverged at all of them."""
    return {
        loss: max(sorted(acceptance), key=lambda rate: acceptance[rate][loss]) for loss in losses
    }


def read(workdir: Workdir, losses: list[str]) -> dict[str, float]:
    """Reads the final acceptance of each loss of a finished run, `DIVERGED` if its student is not
    finite. Raises ValueError if the run lacks a loss."""
    acceptance = files.read_json(workdir.root / FILE)
    tuned = workdir.spec().student_stage.members
    if absent := [loss for loss in losses if loss not in tuned]:
        raise ValueError(
            f"{workdir.root} was tuned without {', '.join(absent)}; delete it to have it tuned "
            "again"
        )
    return {loss: acceptance.get(loss, DIVERGED) for loss in losses}


def final_acceptance(workdir: Workdir, stage: StageSpec) -> dict[str, float]:
    """Reads acceptance after the last step from the curves; losses that diverged are left out."""
    curves = metrics.read_curves(workdir.curves, stage.name, list(stage.seeds))
    last = curves[curves["metric"].eq("acceptance") & curves["step"].eq(stage.steps)]
    return {loss: float(value) for loss, value in last.groupby("loss")["value"].mean().items()}
