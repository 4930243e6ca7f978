"""Students of an 8 B teacher, such as Llama 3, on a TPU slice: eight losses, Kangaroo's adapter
after layer 2.

python -m experiments.distill --config=configs/llama_8b.py --workdir=runs/llama
--config.teacher.checkpoint=FOLDER

The sizes and the vocabulary of the folder's config.json replace those given here, which are for
`experiments.compile` without a folder; its tokenizer and weights are read once. docs/tpu.md says
what it takes of which slice.
"""

from configs import standard


def get_config():
    config = standard.get_config()
    config.losses = "ce,kl,rkl,jsd,tv,nla,lk_hybrid,akl"
    config.seeds = 1
    config.data.vocabulary = 128256
    config.data.sequence_length = 2048
    config.teacher.update(
        {"depth": 32, "width": 4096, "heads": 32, "kv_heads": 8, "mlp_width": 14336}
    )
    config.teacher.update({"rope_base": 500000.0, "batch_size": 8})
    config.student.update({"exit_layer": 2, "heads": 32, "kv_heads": 8, "batch_size": 8})
    config.mesh.update({"data": 1, "fsdp": -1})
    return config
