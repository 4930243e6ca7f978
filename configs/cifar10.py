"""The classifiers of digits.py on CIFAR-10, for an accelerator.

TFDS must have prepared the data (docs/images.md).

python -m experiments.distill --config=configs/cifar10.py --workdir=runs/cifar10
"""

from configs import digits


def get_config():
    config = digits.get_config()
    config.data.update({"source": "cifar10", "channels": 3})
    config.teacher.update({"depth": 4, "width": 96, "steps": 8000, "batch_size": 128})
    config.student.update({"depth": 3, "width": 16, "steps": 4000, "batch_size": 128})
    config.student.optimizer.learning_rate = 3e-3
    return config
