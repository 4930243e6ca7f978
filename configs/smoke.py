"""Every stage in well under a minute, for tests: its numbers mean nothing.

python -m experiments.distill --config=configs/smoke.py --workdir=runs/smoke
"""

from configs import quickstart


def get_config():
    config = quickstart.get_config()
    config.losses = "ce,kl,tv"
    config.seeds = 2
    config.data.vocabulary = 512
    config.data.sequence_length = 32
    config.data.context_prompt = 8
    config.teacher.update({"depth": 2, "width": 32, "heads": 2, "kv_heads": 1, "mlp_width": 64})
    config.teacher.update({"steps": 20, "batch_size": 8})
    config.teacher.optimizer.warmup_steps = 5
    config.student.update(
        {"exit_layer": 1, "heads": 2, "kv_heads": 1, "width": 16, "mlp_width": 32}
    )
    config.student.update({"steps": 12, "batch_size": 8})
    config.student.optimizer.warmup_steps = 2
    config.evaluation.update(
        {"documents": 8, "document_tokens": 64, "prompt_tokens": 8, "generated_tokens": 24}
    )
    config.evaluation.temperatures = (0.5, 1.0)
    config.checkpoint.every = 5
    config.log.every = 4
    return config
