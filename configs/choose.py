"""The comparison of losses by student, teacher, training context and temperature.

python -m experiments.sweep --config=configs/choose.py --workdir=runs/choose

Eight cells of 17 losses and three seeds, 408 students: a base, and each other level of one factor.
They took 108 min on 2 CPU cores, in part beside other jobs: teachers and tuning 16 min, a cell
mostly 7 to 9, decoding 10, the students' on-policy text 9 more. `configs/choose.py:quick` has four
cells of five losses and takes 6 min of CPU time.

The grid is cut, not the seeds. No cell changes two factors, so that nothing shows how they act
together (such cells may be named in `config.sweep.extra`). Temperatures of training are 1 and 2,
one cell is decoded, and learning rates are tuned by kind of student instead of by cell.

Losses of the registry are left out if they have the gradient of another, up to a factor: `ce` (kl),
`negative_acceptance` (tv), and at their defaults `alpha` (hellinger), `renyi` (bhattacharyya) and
`rjsd` (jsd). So is `z_loss`, which is no divergence.
"""

import ml_collections

from configs import quickstart


def get_config(form: str = "full"):
    if form not in _FORMS:
        raise ValueError(f"configs/choose.py has the forms {', '.join(_FORMS)}, not {form!r}")
    config = quickstart.get_config()
    # `kl` comes first: the others are compared with it.
    config.losses = (
        "kl,rkl,jeffreys,akl,jsd,skl,srkl,hellinger,bhattacharyya,pearson,neyman,tv,nla,lk_hybrid,"
        "ce_argmax,ce_top_k,ce_data"
    )
    config.student.steps = 160
    config.evaluation.documents = 48
    config.evaluation.temperatures = (0.0, 0.5, 1.0, 2.0)
    config.evaluation.rules = "sampling"
    config.checkpoint.every = 80
    config.checkpoint.keep = 1

    config.sweep = ml_collections.ConfigDict()
    config.sweep.base = "adapter1-sharp-corpus-T1"  # STUDENT-TEACHER-CONTEXT-TEMPERATURE
    # Cells, separated by commas, beside the base and those that change one factor of it.
    config.sweep.extra = ""
    config.sweep.students = ml_collections.ConfigDict(
        {
            "adapter1": {"kind": "kangaroo", "exit_layer": 1},
            "adapter2": {"kind": "kangaroo", "exit_layer": 2},
            "decoder1": {"kind": "decoder", "depth": 1, "width": 96, "mlp_width": 256},
            "decoder2": {"kind": "decoder", "depth": 2, "width": 144, "mlp_width": 384},
        }
    )
    config.sweep.teachers = ml_collections.ConfigDict(
        {"sharp": {"steps": 500}, "flat": {"steps": 120}}
    )
    config.sweep.contexts = "corpus,teacher,student"  # of training: `config.data.context`
    config.sweep.temperatures = (1.0, 2.0)  # of training: `config.temperature`
    config.sweep.decoded = "adapter1-sharp-corpus-T1"  # globs of cells that are also decoded
    # Learning rates: each loss has its best one for each kind of student.
    config.sweep.rates = (3e-3, 1e-2, 3e-2, 1e-1)
    config.sweep.tuning_steps = 80
    _FORMS[form](config)
    return config


def _quick(config):
    config.losses = "kl,rkl,jsd,tv,nla"
    config.data.vocabulary = 512
    config.student.update({"heads": 4, "kv_heads": 2, "steps": 80, "batch_size": 8})
    config.student.optimizer.warmup_steps = 10
    config.teacher.update({"depth": 3, "width": 96, "heads": 4, "kv_heads": 2, "mlp_width": 256})
    config.evaluation.documents = 32
    config.sweep.students = ml_collections.ConfigDict(
        {
            "adapter1": {"kind": "kangaroo", "exit_layer": 1},
            "adapter2": {"kind": "kangaroo", "exit_layer": 2},
        }
    )
    config.sweep.teachers = ml_collections.ConfigDict({"sharp": {"steps": 200}})
    config.sweep.contexts = "corpus,teacher"
    config.sweep.decoded = ""
    config.sweep.rates = (1e-2, 3e-2, 1e-1)
    config.sweep.tuning_steps = 40


_FORMS = {"full": lambda config: None, "quick": _quick}
