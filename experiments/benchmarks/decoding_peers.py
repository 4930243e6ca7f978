"""Greedy decoding beside transformers on PyTorch, with the very same weights: plain, by a draft
model, by lookup.

  python -m experiments.distill --config=configs/decoding.py --workdir=runs/drafter
  --config.student.kind=decoder python -m experiments.benchmarks.decoding_peers
  --workdir=runs/drafter --loss=kl

Target and draft are written as Llama folders and read by transformers; the draft must be of kind
`decoder`. All take turns in one process, one prompt at a time, and must give the same tokens.
"""

from experiments.common import startup

startup.begin(__name__)

import pathlib
import tempfile

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from experiments.benchmarks.decoding import LOSS, ROUNDS, TEXTS, TOKENS, WORKDIR, Run, telling
from experiments.common import cli, timing
from jaxdiv import speculative
from jaxdiv.models import DecoderStudent, llama, llama_tensors

GAMMA = flags.DEFINE_integer("gamma", 4, "Drafts a round, of both.", lower_bound=1)


def load_theirs(decoder, length):
    """The decoder as transformers' model."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ValueError(
            f"{error.name} is not installed: pip install -e '.[train,peers]'"
        ) from None
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        config = llama.decoder_config(decoder, end_of_text=0, longest=length)
        llama.write(pathlib.Path(folder), config, llama_tensors.decoder_tensors(decoder))
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    # No token ends a text here: all decode the same number.
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    return model


def contestants(run: Run, prompts: np.ndarray) -> dict:
    """By name, a call that gives the new tokens of every prompt."""
    import torch

    length = prompts.shape[1] + TOKENS.value
    target, draft = load_theirs(run.target, length), load_theirs(run.student.decoder, length)

    fast = run.unrolled

    def ours(draft, **settings):
        return lambda: [
            fast.decode(draft, p[None], temperature=0.0, **settings).tokens[0] for p in prompts
        ]

    def theirs(**settings):
        def one(prompt):
            ids = torch.tensor(prompt[None], dtype=torch.long)
            mask = torch.ones_like(ids)
            text = target.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=TOKENS.value,
                min_new_tokens=None,
                do_sample=False,
                **settings,
            )
            return text[0, prompts.shape[1] :].numpy()

        return lambda: [one(p) for p in prompts]

    draft.generation_config.num_assistant_tokens = GAMMA.value
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    return {
        "plain": ours(None),
        f"draft γ={GAMMA.value}": ours(fast.student, gamma=GAMMA.value),
        f"lookup γ={GAMMA.value}": ours(speculative.LOOKUP, gamma=GAMMA.value),
        "transformers: plain": theirs(),
        f"transformers: draft γ={GAMMA.value}": theirs(assistant_model=draft),
        f"transformers: lookup γ={GAMMA.value}": theirs(prompt_lookup_num_tokens=GAMMA.value),
    }


def main(_):
    if not WORKDIR.value:
        raise ValueError("give a finished run, such as --workdir=runs/drafter")
    run = Run.load(WORKDIR.value, LOSS.value)
    if not isinstance(run.student, DecoderStudent):
        raise ValueError(
            f"{WORKDIR.value} has Kangaroo students, which transformers lacks; train kind `decoder`"
        )
    prompts = telling(run, TEXTS.value)
    calls = contestants(run, prompts)
    texts = {name: call() for name, call in calls.items()}
    seconds = timing.interleaved(calls, rounds=ROUNDS.value)
    made = Table(
        title=f"Greedy, batch 1, {TEXTS.value} texts of {TOKENS.value} tokens", title_justify="left"
    )
    for column in ("", "tokens a second", "× its own plain", "texts as ours plain"):
        made.add_column(column, justify="right" if column else "left")
    for name in calls:
        plain = "transformers: plain" if name.startswith("transformers") else "plain"
        same = sum(np.array_equal(a, b) for a, b in zip(texts[name], texts["plain"], strict=True))
        rate = TEXTS.value * TOKENS.value / np.median(seconds[name])
        made.add_row(
            name,
            f"{rate:.1f}",
            f"{np.median(seconds[plain] / seconds[name]):.2f}",
            f"{same} of {TEXTS.value}",
        )
    Console(width=110).print(made)
    return 0


if __name__ == "__main__":
    cli.run(main)
