"""Heads as large as the models in use have them, 128,256 classes, on one accelerator: a teacher of
169 M parameters.

python -m experiments.distill --config=configs/large_vocab.py --workdir=runs/large_vocab

The tokenizer has 16,384 tokens, all that the standard library's sources give; the other classes are
padding.
"""

from configs import standard


def get_config():
    config = standard.get_config()
    config.teacher.padded_vocabulary = 128256  # Llama 3's
    return config
