"""Package metadata. The core needs JAX alone; everything else is an extra."""

import pathlib

from setuptools import find_packages, setup

TRAIN = [
    "absl-py>=2.5",
    "array_record>=0.8.3",
    "etils[epath]>=1.15",
    "filelock>=4.3",
    # JAX 0.11.1 and later, which need Python 3.12, break Flax up to 0.12.8.
    "flax>=0.12.8; python_version < '3.12'",
    "flax>=0.12.12; python_version >= '3.12'",
    "grain>=0.2.18",
    "importlib_resources>=6.5",  # TFDS imports it without declaring it
    "jaxtyping>=0.3.11",
    "jinja2>=3.1.6",
    "matplotlib>=3.11",
    "ml_collections>=1.1",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "pandas>=3.0",
    "rich>=15.0",
    "pillow>=12.0",
    "safetensors>=0.8",
    "scikit-learn>=1.8",
    "tensorboardX>=2.6.5",
    "tensorflow-datasets>=4.9.10",
    "tokenizers>=0.23",
]
TEST = [
    "beartype>=0.22",
    "equinox>=0.13",
    "gguf>=0.19",
    "hypothesis>=6.170",
    "mpmath>=1.3",
    "pytest>=9.0",
    "pytest-xdist>=3.8",
]

setup(
    name="jaxdiv",
    version="0.1.0",
    description="Divergence losses for speculative decoding's draft models, compared by acceptance",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["jaxdiv", "jaxdiv.*"]),
    package_data={"jaxdiv.reporting": ["*.html.j2", "*.css"]},
    install_requires=["jax>=0.10.2"],
    extras_require={
        "train": TRAIN,
        "test": TRAIN + TEST,
        "dev": [*TRAIN, *TEST, "ruff>=0.15"],
        # What losses and models are compared with: over a gigabyte.
        "peers": ["distrax>=0.1.9", "torch>=2.13", "transformers>=5.24"],
        "cuda": ["jax[cuda13]>=0.10.2"],
        "tpu": ["jax[tpu]>=0.10.2"],
        "gguf": [*TRAIN, "gguf>=0.19"],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
