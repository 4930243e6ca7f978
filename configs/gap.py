"""Mistakes and measures that could make a hundredfold gap between cross-entropy and KL.

python -m experiments.gap --config=configs/gap.py --workdir=runs/gap

228 students, 29 min on 2 CPU cores. Forms: `configs/gap.py:quick` for a first look, and
`configs/gap.py:decoder` with independent students, which start without knowledge of the teacher.
"""

from configs import quickstart
from experiments.gap import causes

_PAIRS = (
    "mean_over_vocabulary+sgd",
    "mean_over_vocabulary+adam_large_epsilon",
    "batchmean_over_rows+sgd",
    "sum+sgd",
    "sum+sgd+no_clipping",
    "learning_rate_tenfold+no_clipping",
)
_MEASURES = (*causes.MEASURING, "measured_by_exact_match+measured_at_temperature_20")
_TRAINING_AND_MEASURES = (
    "softmax_twice+measured_greedily",
    "temperature_10_without_square+measured_at_temperature_20",
    "mean_over_vocabulary+sgd+measured_greedily",
    "mean_over_vocabulary+sgd+measured_at_temperature_20",
)
_TRAINED = [name for name in causes.TRAINING if name != causes.BASELINE]
_CAUSES = (*_TRAINED, *_PAIRS, *_MEASURES, *_TRAINING_AND_MEASURES)


def get_config(form: str = "full"):
    if form not in _FORMS:
        raise ValueError(f"configs/gap.py has the forms {', '.join(_FORMS)}, not {form!r}")
    config = quickstart.get_config()
    # The study accepts no other losses and rules.
    config.losses = "ce,kl"
    config.causes = ",".join(_CAUSES)
    config.student.exit_layer = 1
    config.student.update({"steps": 300, "batch_size": 8})
    config.evaluation.temperatures = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
    config.evaluation.rules = "sampling,greedy_draft,exact_match,typical,greedy_match"
    config.evaluation.documents = 32
    config.checkpoint.every = 50
    _FORMS[form](config)
    return config


def _quick(config):
    trained = "untrained,softmax_twice,labels_shifted,hard_labels,mean_over_vocabulary,sgd"
    both = [name for name in _TRAINING_AND_MEASURES if "temperature_10" not in name]
    config.causes = ",".join([trained, "mean_over_vocabulary+sgd", *_MEASURES, *both])
    config.data.vocabulary = 512
    config.teacher.update(
        {"depth": 3, "width": 96, "heads": 4, "kv_heads": 2, "mlp_width": 256, "steps": 200}
    )
    config.student.update({"heads": 4, "kv_heads": 2, "steps": 100})


def _decoder(config):
    config.student.kind = "decoder"
    config.causes = ",".join(name for name in _CAUSES if name not in causes.KANGAROO_ONLY)


_FORMS = {"full": lambda config: None, "quick": _quick, "decoder": _decoder}
