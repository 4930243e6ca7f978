"""A teacher whose weights don't fit a cache, trained briefly: what decoding speed is measured with.

python -m experiments.distill --config=configs/decoding.py --workdir=runs/decoding

Accepted at temperature 1 on held-out documents: kl 79.5%, tv 79.7%. On 2 CPU cores beside other
jobs it took 44 min.
"""

from configs import quickstart


def get_config():
    config = quickstart.get_config()
    config.losses = "kl,tv"
    config.seeds = 1
    config.data.sequence_length = 192
    config.teacher.update({"depth": 16, "width": 448, "heads": 7, "kv_heads": 1, "mlp_width": 1280})
    config.teacher.update(
        {"steps": 800, "batch_size": 4}
    )  # many small steps: so little text teaches more by them
    config.teacher.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 30})
    config.student.update(
        {"exit_layer": 2, "heads": 7, "kv_heads": 1, "steps": 400, "batch_size": 8}
    )
    config.student.update({"depth": 2, "width": 224, "mlp_width": 640})  # of kind decoder
    config.evaluation.update({"documents": 16, "document_tokens": 256})
    config.evaluation.temperatures = (1.0,)
    config.checkpoint.every = 100
    return config
