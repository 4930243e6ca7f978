"""Small classifiers of handwritten digits, distilled from a larger one: acceptance is agreement
with it.

python -m experiments.distill --config=configs/digits.py --workdir=runs/digits

Hinton's distillation (arXiv 1503.02531), soft targets at a temperature mixed with the labels, is
the form `configs/digits.py:hinton`. docs/images.md has what to expect.
"""

from configs import quickstart


def get_config(form: str = "full"):
    if form not in _FORMS:
        raise ValueError(f"configs/digits.py has the forms {', '.join(_FORMS)}, not {form!r}")
    config = quickstart.get_config()
    config.losses = "ce,kl,rkl,jsd,tv,nla,ce_argmax,ce_data,0.9*kl + 0.1*ce_data"
    config.seeds = 6
    config.data.update({"kind": "images", "source": "digits", "feature": "image", "label": "label"})
    config.data.update({"channels": 1, "vocabulary": 10, "sequence_length": 1})
    config.teacher.update(
        {"kind": "classifier", "depth": 3, "width": 16, "steps": 200, "batch_size": 64}
    )
    config.teacher.optimizer.update({"learning_rate": 1e-3, "beta2": 0.999})
    config.student.update(
        {"kind": "classifier", "depth": 2, "width": 6, "steps": 300, "batch_size": 64}
    )
    config.student.optimizer.learning_rate = 2e-2
    config.evaluation.update(
        {"contexts": "images", "documents": 10000, "temperatures": (0.25, 0.5, 1.0, 2.0, 5.0)}
    )
    _FORMS[form](config)
    return config


def _hinton(config):
    """Sets losses on soft targets, with their factor T², and on labels, at temperature 1."""
    config.losses = "ce_data,kl,0.9*kl + 0.1*ce_data"
    config.temperature = 4.0


_FORMS = {"full": lambda config: None, "hinton": _hinton}
