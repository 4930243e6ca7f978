"""The size that a single accelerator is for: a vocabulary of 16,384 and a teacher of about 60 M
parameters.

python -m experiments.distill --config=configs/standard.py --workdir=runs/standard
"""

from configs import quickstart


def get_config():
    config = quickstart.get_config()
    config.dtype = "bfloat16"
    config.data.vocabulary = 16384
    config.data.sequence_length = 512
    config.teacher.update({"depth": 12, "width": 512, "heads": 8, "kv_heads": 4, "mlp_width": 1536})
    config.teacher.update({"steps": 4000, "batch_size": 32})
    config.teacher.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 200})
    config.student.update(
        {"exit_layer": 2, "heads": 8, "kv_heads": 4, "depth": 2, "width": 256, "mlp_width": 768}
    )
    config.student.update({"steps": 2000, "batch_size": 16})
    config.student.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 100})
    config.evaluation.update({"documents": 128, "document_tokens": 2048, "prompt_tokens": 64})
    config.evaluation.generated_tokens = 448
    config.checkpoint.every = 250
    config.log.every = 100
    return config
