"""The classifiers of digits.py on MNIST.

TFDS must have prepared the data (docs/images.md).

python -m experiments.distill --config=configs/mnist.py --workdir=runs/mnist
"""

from configs import digits


def get_config():
    config = digits.get_config()
    config.data.source = "mnist"
    config.teacher.update({"width": 32, "steps": 2000, "batch_size": 128})
    config.student.update({"width": 4, "steps": 1000, "batch_size": 128})
    return config
