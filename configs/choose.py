"""Which loss should a draft be trained with? Losses by student, teacher, training context and temperature.

python -m experiments.sweep --config=configs/choose.py --workdir=runs/choose
"""

import ml_collections

from configs import quickstart


def get_config(form: str = "full"):
    if form not in _FORMS:
        raise ValueError(f"configs/choose.py has the forms {', '.join(_FORMS)}, not {form!r}")
    config = quickstart.get_config()
    config.losses = (
        "kl,rkl,jeffreys,akl,jsd,skl,srkl,hellinger,bhattacharyya,pearson,neyman,tv,nla,lk_hybrid,ce_argmax,ce_top_k,"
        "ce_data"
    )
    config.student.steps = 160
    config.evaluation.temperatures = (0.0, 0.5, 1.0, 2.0)
    config.evaluation.rules = "sampling"
    config.checkpoint.every = 80
    config.checkpoint.keep = 1

    config.sweep = ml_collections.ConfigDict()
    config.sweep.base = "adapter1-sharp-corpus-T1"  # STUDENT-TEACHER-CONTEXT-TEMPERATURE
    config.sweep.extra = "decoder96-flat-corpus-T1"  # cells beside the base and those that change one factor of it
    config.sweep.students = ml_collections.ConfigDict(
        {
            "adapter1": {"kind": "kangaroo", "exit_layer": 1},
            "adapter2": {"kind": "kangaroo", "exit_layer": 2},
            "decoder96": {"kind": "decoder", "depth": 1, "width": 96, "mlp_width": 256},
            "decoder192": {"kind": "decoder", "depth": 2, "width": 192, "mlp_width": 512},
        }
    )
    config.sweep.teachers = ml_collections.ConfigDict({"sharp": {"steps": 500}, "flat": {"steps": 120}})
    config.sweep.contexts = "corpus,teacher,student"  # of training: `config.data.context`
    config.sweep.temperatures = (1.0, 2.0)  # of training: `config.temperature`
    config.sweep.decoded = "adapter1-sharp-corpus-T1"  # globs of the cells that are decoded, too
    config.sweep.rates = (1e-3, 3e-3, 1e-2)  # of learning, of which each loss gets its best for each kind of student
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
        {"adapter1": {"kind": "kangaroo", "exit_layer": 1}, "adapter2": {"kind": "kangaroo", "exit_layer": 2}}
    )
    config.sweep.teachers = ml_collections.ConfigDict({"sharp": {"steps": 200}})
    config.sweep.contexts = "corpus"
    config.sweep.temperatures = (1.0,)
    config.sweep.extra = config.sweep.decoded = ""
    config.sweep.rates = (3e-3, 1e-2)
    config.sweep.tuning_steps = 40


_FORMS = {"full": lambda config: None, "quick": _quick}
