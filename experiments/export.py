"""Writes one trained student, or the teacher, as safetensors with its config, tokenizer and a card.

  python -m experiments.export --workdir=runs/quickstart --loss=kl --seed=0 --output=exported/kl
  python -m experiments.export --workdir=runs/quickstart --teacher --output=exported/teacher

A student of kind `decoder` becomes a Llama folder and the teacher one of its family, which
transformers and `--from_hf` load. A Kangaroo adapter becomes named tensors and a config that says
which target it needs.
"""

from experiments.common import startup

startup.begin(__name__)

import pathlib

from absl import flags

from experiments.common import cli
from jaxdiv import files
from jaxdiv.data.tokenizer import FILE, Tokenizer
from jaxdiv.models import Decoder, DecoderStudent, KangarooAdapter, llama
from jaxdiv.reporting import model_card, results
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import run_data, students, teacher

WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "The folder of a finished run.")
LOSS = flags.DEFINE_string("loss", None, "The student's loss, as the run's config has it.")
SEED = flags.DEFINE_integer("seed", None, "The student's seed.")
TEACHER = flags.DEFINE_bool("teacher", False, "Export the teacher instead.")
OUTPUT = flags.DEFINE_string("output", None, "The folder to make; it must be new or empty.")

_LLAMA = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this/folder")
tokenizer = AutoTokenizer.from_pretrained("this/folder")
```
"""
_ASSISTANT = f"""{_LLAMA}
It drafts for a target with this tokenizer: `target.generate(**inputs, assistant_model=model)`.
"""
_ADAPTER = """With h the target's hidden state after its layer `exit_layer`, before any norm:

    x = h + o_proj(attention(input_layernorm(h)))
    logits = lm_head(norm(x))

attention is Llama's, with rotary positions; lm_head is the target's. config.json has the sizes. If
there is a tensor `d2t`, lm_head has only the target's columns i + d2t[i], and `t2d` marks these.
"""


def main(_):
    run = Workdir(WORKDIR.value)
    config = run.config()
    spec = run.spec()
    run_data.require_text(spec.data)
    if not OUTPUT.value:
        raise ValueError("give the folder to make, such as --output=exported/kl")
    if TEACHER.value and (LOSS.value is not None or SEED.value is not None):
        raise ValueError("--teacher exports the teacher, which has no --loss and no --seed")
    with files.making_folder(OUTPUT.value) as folder:
        tokenizer = Tokenizer.load(run.tokenizer)
        target = teacher.restore(spec.teacher, run, tokenizer.vocab_size).module()
        if TEACHER.value:
            _write_decoder(folder, target, tokenizer, config)
            card = model_card.teacher(use=_LLAMA, config=config, facts=run.facts())
        else:
            card = _write_student(folder, run, target, tokenizer)
        tokenizer.save(folder / FILE)
        files.write_text(folder / "README.md", card)
    cli.log(f"written to {OUTPUT.value}")
    return 0


def _write_student(
    folder: pathlib.Path, run: Workdir, target: Decoder, tokenizer: Tokenizer
) -> str:
    """Writes the config and tensors of the student that the flags name; returns its card."""
    config = run.config()
    if LOSS.value is None:
        raise ValueError(f"give --teacher or --loss, one of {config['losses']}")
    if SEED.value is None:
        raise ValueError(f"give --seed, one of {', '.join(map(str, run.spec().seeds))}")
    student = students.restore_one(str(run.root), loss=LOSS.value, seed=SEED.value).module()
    if not run.results.exists():
        raise ValueError(
            f"{run.results} is not there; measure first: "
            f"python -m experiments.acceptance --workdir={run.root}"
        )
    if isinstance(student, KangarooAdapter):
        llama.write_adapter(folder, student, target)
        kind = f"Kangaroo adapter after layer {student.exit_layer}"
        library, use = "jaxdiv", _ADAPTER
    elif isinstance(student, DecoderStudent):
        if student.vocabulary is not None:
            raise ValueError(
                "`config.student.vocabulary` must be 0 for a decoder that is exported, since a "
                f"Llama's head has a row for every token, got {student.vocabulary.size}"
            )
        _write_decoder(folder, student.decoder, tokenizer, config)
        kind, library, use = "Llama decoder", "transformers", _ASSISTANT
    else:
        raise ValueError(
            "`config.student.kind` must be kangaroo or decoder for a student that is exported, "
            f"got {config['student']['kind']}; give --teacher to export the teacher alone"
        )
    return model_card.student(
        loss=LOSS.value,
        seed=SEED.value,
        frame=results.read_csv(run.results),
        kind=kind,
        library=library,
        use=use,
        config=config,
        facts=run.facts(),
    )


def _write_decoder(folder, decoder, tokenizer, config):
    settings = config["evaluation"]
    generated = settings["prompt_tokens"] + settings["generated_tokens"]
    longest = max(config["data"]["sequence_length"], generated)
    llama.write_decoder(folder, decoder, end_of_text=tokenizer.end_of_text, longest=longest)


if __name__ == "__main__":
    cli.run(main)
