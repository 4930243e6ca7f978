"""Which mistakes and measures can make a hundredfold gap between cross-entropy and KL?

python -m experiments.gap --config=configs/gap.py --workdir=runs/gap

228 students, 29 min on 2 CPU cores. Forms: `configs/gap.py:quick` for a first look,
`configs/gap.py:decoder` of independent students, whose start knows nothing of the teacher.
"""

from configs import quickstart

_FORMULAS = "softmax_twice,without_log,arguments_swapped,float16,float16_loss_scaling,float16_log_of_softmax"
_TEMPERATURES = (
    "temperature_2,temperature_10,temperature_2_without_square,temperature_10_without_square"
)
_REDUCTIONS = "mean_over_vocabulary,batchmean_over_rows,sum"
_OPTIMIZERS = (
    "sgd,adam_large_epsilon,learning_rate_tenth,learning_rate_tenfold,no_clipping,clip_by_small_norm,clip_by_value,"
    "no_weight_decay,large_weight_decay"
)
_READ = "untrained,labels_shifted,hard_labels,data_labels,padding_counted,teacher_not_detached"
_OF_KANGAROO = "wrong_exit_layer,another_sequence,head_trained"
_PAIRS = (
    "mean_over_vocabulary+sgd,mean_over_vocabulary+adam_large_epsilon,batchmean_over_rows+sgd,sum+sgd,sum+sgd+no_clipping,"
    "learning_rate_tenfold+no_clipping"
)
_MEASURED = (
    "measured_by_exact_match,measured_by_greedy_draft,measured_by_threshold,measured_greedily,"
    "measured_at_temperature_0,measured_at_temperature_20,measured_on_own_text,counted_a_call,counted_at_position_1,"
    "counted_at_position_4,measured_by_exact_match+measured_at_temperature_20"
)
_BOTH_SIDES = (
    "softmax_twice+measured_greedily,temperature_10_without_square+measured_at_temperature_20,"
    "mean_over_vocabulary+sgd+measured_greedily,mean_over_vocabulary+sgd+measured_at_temperature_20"
)


def get_config(form: str = "full"):
    if form not in _FORMS:
        raise ValueError(f"configs/gap.py has the forms {', '.join(_FORMS)}, not {form!r}")
    config = quickstart.get_config()
    config.losses = "ce,kl"  # in this study always
    config.causes = ",".join(
        [
            _FORMULAS,
            _TEMPERATURES,
            _REDUCTIONS,
            _OPTIMIZERS,
            _READ,
            _OF_KANGAROO,
            _PAIRS,
            _MEASURED,
            _BOTH_SIDES,
        ]
    )
    config.student.exit_layer = 1
    config.student.update({"steps": 300, "batch_size": 8})
    config.evaluation.temperatures = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
    config.evaluation.rules = (
        "sampling,greedy_draft,exact_match,typical,greedy_match"  # in this study always
    )
    config.evaluation.documents = 32
    config.checkpoint.every = 50
    _FORMS[form](config)
    return config


def _quick(config):
    config.causes = ",".join(
        [
            "untrained,softmax_twice,labels_shifted,hard_labels,mean_over_vocabulary,sgd,mean_over_vocabulary+sgd",
            _MEASURED,
            _BOTH_SIDES,
        ]
    ).replace("temperature_10_without_square+measured_at_temperature_20,", "")
    config.data.vocabulary = 512
    config.teacher.update(
        {"depth": 3, "width": 96, "heads": 4, "kv_heads": 2, "mlp_width": 256, "steps": 200}
    )
    config.student.update({"heads": 4, "kv_heads": 2, "steps": 100})


def _decoder(config):
    config.student.kind = "decoder"
    config.causes = config.causes.replace(f"{_OF_KANGAROO},", "")


_FORMS = {"full": lambda config: None, "quick": _quick, "decoder": _decoder}
