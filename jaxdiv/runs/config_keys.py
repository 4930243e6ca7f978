"""The keys of a run's config: name, rule, default and meaning of each, once for the whole project.

The check in `jaxdiv.runs.config`, the defaults that every file in configs/ starts from and the
table of docs/config.md come from `KEYS`. A new key is one line here and one field in
`jaxdiv.runs.specs`. To write docs/config.md anew:

python -m jaxdiv.runs.config_keys > docs/config.md
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxdiv import models, schema
from jaxdiv.acceptance import RULES
from jaxdiv.models.builders import STUDENTS

TEXTS, IMAGES = "text", schema.IMAGES
# Who writes the text that students are trained on: the data's authors, the teacher, or each student
# itself.
TRAINING_CONTEXTS = (CORPUS, TEACHER_TEXT, STUDENT_TEXT) = (schema.CORPUS, "teacher", "student")
REST = -1  # size of a mesh axis: all devices that the other axes leave


class KeyRule(NamedTuple):
    """The values that a key may have: a phrase for messages, and the test itself."""

    allowed: str
    holds: Callable[[Any], bool]


class ConfigKey(NamedTuple):
    """One key of a run's config; `name` is dotted, such as `teacher.optimizer.beta1`."""

    name: str
    rule: KeyRule
    default: Any
    meaning: str


def names_in(text: str) -> tuple[str, ...]:
    """Returns the names of a comma-separated list."""
    return tuple(part.strip() for part in text.split(","))


def check_value(name: str, rule: KeyRule, value: Any) -> None:
    """Raises ValueError with the name, its value and what is allowed, unless the rule holds."""
    try:
        holds = rule.holds(value)
    except TypeError:
        holds = False
    if not holds:
        raise ValueError(f"{name} must be {rule.allowed}, got {value!r}")


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def whole(low: int, high: float = math.inf) -> KeyRule:
    """Returns the rule for whole numbers in low..high."""
    text = f"of at least {low}" if high == math.inf else f"in {low}..{high}"
    return KeyRule(
        f"a whole number {text}",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high,
    )


def _one_of(*names):
    return KeyRule("one of " + ", ".join(names), lambda v: v in names)


def _some_of(names):
    def holds(value):
        parts = names_in(value) if isinstance(value, str) else ("",)
        return len(set(parts)) == len(parts) and set(parts) <= set(names)

    return KeyRule(f"different ones of {','.join(names)}, separated by commas", holds)


POSITIVE = KeyRule("a finite number above 0", lambda v: _is_number(v) and v > 0)
NOT_NEGATIVE = KeyRule("a finite number of at least 0", lambda v: _is_number(v) and v >= 0)
FRACTION = KeyRule("a number in [0, 1]", lambda v: _is_number(v) and 0 <= v <= 1)
DECAY = KeyRule("a number in [0, 1)", lambda v: _is_number(v) and 0 <= v < 1)
TEMPERATURES = KeyRule(
    "different finite numbers of at least 0 (greedy), separated by commas",
    lambda v: 0 < len(v) == len(set(v)) and all(_is_number(t) and t >= 0 for t in v),
)
TEXT = KeyRule("text", lambda v: isinstance(v, str))
NAME = KeyRule("text that is not empty", lambda v: isinstance(v, str) and v.strip() != "")
DEVICES = KeyRule(
    f"a whole number of at least 1, or {REST} for all devices that the others leave",
    lambda v: v == REST or whole(1).holds(v),
)


def _optimizer(learning_rate: float, final_fraction: float, beta2: float) -> dict[str, tuple]:
    return {
        "name": (_one_of("adamw", "sgd"), "adamw", "The optimizer."),
        "learning_rate": (POSITIVE, learning_rate, "Learning rate after the warm-up."),
        "warmup_steps": (whole(0), 20, "Steps of linear warm-up from 0."),
        "final_fraction": (FRACTION, final_fraction, "Where the cosine ends, of the rate."),
        "weight_decay": (NOT_NEGATIVE, 0.01, "Decoupled weight decay of all matrices."),
        "beta1": (DECAY, 0.9, "Decay of AdamW's first moment, or SGD's momentum."),
        # In short runs under tv and nla, whose gradients are noisy, it should be near 1.
        "beta2": (DECAY, beta2, "Decay of AdamW's second moment."),
        "epsilon": (POSITIVE, 1e-8, "AdamW's epsilon."),
        "clip_norm": (NOT_NEGATIVE, 1.0, "Gradients are clipped to this norm; 0 for none."),
    }


_LOSSES = "ce,ce_argmax,ce_data,kl,rkl,jeffreys,jsd,tv,nla,lk_hybrid"
_TABLE = {
    "losses": (NAME, _LOSSES, "Losses to train with, as `jaxdiv.get` takes them, by commas."),
    "seeds": (whole(1), 3, "Students per loss; student i is initialized from `seed` + i."),
    "seed": (whole(0, 2**31 - 1), 0, "Seed of the data order, the teacher and sampled text."),
    "temperature": (POSITIVE, 1.0, "Distillation temperature, of teacher and student."),
    "dtype": (_one_of("float32", "bfloat16"), "float32", "Type of activations, not parameters."),
    "data": {
        "kind": (_one_of(TEXTS, IMAGES), TEXTS, "What the data are; an image is one prediction."),
        "source": (NAME, "python_stdlib", "`python_stdlib`, or a prepared TFDS data set."),
        "feature": (NAME, "text", "The TFDS feature to read."),
        "label": (NAME, "label", "Images: the TFDS feature with their classes."),
        "channels": (whole(1), 1, "Images: channels."),
        "directory": (TEXT, "", "TFDS folder; empty for TFDS's own, or the run's folder."),
        "files": (TEXT, "", "Glob of text files to read instead of `data.source`."),
        "vocabulary": (whole(2), 1024, "Size of the BPE tokenizer; images: number of classes."),
        "sequence_length": (whole(1), 96, "Tokens per row of a training batch."),
        "context": (_one_of(*TRAINING_CONTEXTS), CORPUS, "Who writes the students' batches."),
        "context_share": (FRACTION, 0.5, "Share of rows that the teacher or student writes."),
        "context_prompt": (whole(1), 16, "Tokens of the corpus that such a row begins with."),
    },
    "teacher": {
        "checkpoint": (TEXT, "", "Run or Llama folder to take teacher, sizes and tokenizer from."),
        "kind": (_one_of("decoder", models.CLASSIFIER), "decoder", "The classifier is for images."),
        "depth": (whole(1), 4, "Layers."),
        "width": (whole(2), 192, "Width of the hidden state."),
        "heads": (whole(1), 6, "Attention heads."),
        "kv_heads": (whole(1), 2, "Heads of keys and values."),
        "mlp_width": (whole(1), 512, "Width inside the MLP."),
        "padded_vocabulary": (whole(0, 2**24), 0, "Rows of embedding and head; 0: no padding."),
        "rope_base": (POSITIVE, 10000.0, "Base of the rotary positions."),
        "norm_epsilon": (POSITIVE, 1e-5, "Epsilon of all norms, also the students'."),
        "steps": (whole(1), 500, "Training steps."),
        "batch_size": (whole(1), 24, "Rows per batch."),
        "optimizer": _optimizer(learning_rate=4e-3, final_fraction=0.1, beta2=0.95),
    },
    "student": {
        "kind": (_one_of(*STUDENTS), "kangaroo", "The draft model."),
        "exit_layer": (whole(1), 2, "kangaroo: reads the teacher's state after this layer."),
        "heads": (whole(1), 6, "Attention heads."),
        "kv_heads": (whole(1), 2, "Heads of keys and values."),
        "depth": (whole(1), 1, "decoder, classifier: layers."),
        "width": (whole(2), 96, "decoder, classifier: width."),
        "mlp_width": (whole(1), 256, "decoder: width inside the MLP."),
        "steps": (whole(1), 240, "Training steps."),
        "batch_size": (whole(1), 12, "Rows per batch."),
        "learning_rates": (TEXT, "", "Rates of single losses, such as `tv: 1e-2; nla: 1e-2`."),
        # Above about 5e-3 training amplifies rounding so much that ce and kl, whose gradients are
        # equal, end apart.
        "optimizer": _optimizer(learning_rate=3e-3, final_fraction=0.0, beta2=0.999),
    },
    "evaluation": {
        "temperatures": (
            TEMPERATURES,
            (0.25, 0.5, 1.0, 2.0, 5.0, 20.0),
            "Sampling temperatures; 0 is greedy.",
        ),
        "contexts": (
            _some_of(schema.CONTEXTS),
            "corpus,generated,generated_greedy",
            "What teacher and students read while acceptance is measured.",
        ),
        "rules": (
            _some_of(RULES),
            "sampling,greedy_draft,greedy_match",
            "Acceptance rules; `sampling` ranks the losses and is always measured.",
        ),
        "documents": (whole(2), 64, "Held-out documents, at most."),
        "document_tokens": (whole(2, schema.MAX_DOCUMENT_TOKENS), 288, "Tokens of each, at most."),
        "prompt_tokens": (whole(1), 32, "Tokens of a document before the teacher's own text."),
        "generated_tokens": (whole(9), 256, "Tokens of that text, at most."),
    },
    "mesh": {
        "student": (DEVICES, 1, "Devices that share the seeds of each loss."),
        "data": (DEVICES, REST, "Devices that share the rows of a batch."),
        "fsdp": (DEVICES, 1, "Devices that share those rows and the parameters."),
        "tensor": (DEVICES, 1, "Devices that share the classes of the vocabulary."),
    },
    "checkpoint": {
        "every": (whole(1), 50, "Steps between checkpoints."),
        "keep": (whole(1), 2, "Newest checkpoints that are kept."),
    },
    "log": {"every": (whole(1), 20, "Steps between measurements on a validation batch.")},
}


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested mappings by dotted key."""
    leaves = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        leaves |= flatten(value, f"{name}.") if hasattr(value, "items") else {name: value}
    return leaves


KEYS = {name: ConfigKey(name, *row) for name, row in flatten(_TABLE).items()}
DECODER_SIZES = ("depth", "width", "heads", "kv_heads", "mlp_width")


def defaults() -> dict[str, Any]:
    """Returns a new config with the default of every key, as nested plain values."""

    def values(part):
        return {
            name: values(row) if isinstance(row, dict) else row[1] for name, row in part.items()
        }

    return values(_TABLE)


def page() -> str:
    """Returns docs/config.md: a table of all keys."""
    rows = []
    for key in KEYS.values():
        values = key.default if isinstance(key.default, tuple) else (key.default,)
        default = ", ".join(map(str, values))
        default = f"`{default}`" if default else "empty"
        rows.append(f"| `{key.name}` | {key.meaning} | {key.rule.allowed} | {default} |")
    return "\n".join([_HEAD, *rows, ""])


_HEAD = """# Config keys

Every file in [configs](../configs) starts from these defaults, which are those of
`configs/quickstart.py`, and changes what differs. On the command line a key is
`--config.teacher.steps=1000`. A missing, unknown or wrong key is refused before any work.

This page is written by `python -m jaxdiv.runs.config_keys > docs/config.md` from the table in
`jaxdiv/runs/config_keys.py`.

| key | meaning | allowed | default |
|---|---|---|---|"""

if __name__ == "__main__":
    print(page(), end="")
