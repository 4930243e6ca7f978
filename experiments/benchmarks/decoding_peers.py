"""Greedy decoding beside transformers on PyTorch, with the very same weights.

  python -m experiments.distill --config=configs/decoding.py --workdir=runs/drafter \
      --config.student.kind=decoder
  python -m experiments.benchmarks.decoding_peers --workdir=runs/drafter --loss=kl

Both decode plainly, by a draft model and by prompt lookup. Target and draft are written as Llama
folders and read by transformers; the draft must be of kind `decoder`. All take turns in one
process, one prompt at a time; the table says how many texts are those of our plain decoding.
"""

from experiments.common import startup

startup.begin(__name__)

import functools
import pathlib
import tempfile
from collections.abc import Callable

import numpy as np
from absl import flags

from experiments.benchmarks import harness
from experiments.benchmarks.decoding import (
    LOSS,
    ROUNDS,
    TEXTS,
    TOKENS,
    WORKDIR,
    TrainedPair,
    varied_prompts,
)
from experiments.common import cli, timing
from jaxdiv import schema, speculative
from jaxdiv.models import DecoderStudent, llama

GAMMA = flags.DEFINE_integer(
    "gamma", schema.HEADLINE_GAMMA, "Drafts a round, of both.", lower_bound=1
)


def transformers_model(decoder, length: int):
    """Returns the decoder as transformers' model, which then decodes without an end of text."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ValueError(
            f"{error.name} is not installed: pip install -e '.[train,peers]'"
        ) from None
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        llama.write_decoder(pathlib.Path(folder), decoder, end_of_text=0, longest=length)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    return model


def jaxdiv_calls(pair: TrainedPair, prompts: np.ndarray, gamma: int) -> dict[str, Callable]:
    """Returns by name a call that decodes every prompt by jaxdiv."""

    def call(draft, **settings):
        decode = functools.partial(pair.unrolled.decode, draft, temperature=0.0, **settings)
        return lambda: [decode(prompt[None]).tokens[0] for prompt in prompts]

    return {
        "plain": call(None),
        f"draft γ={gamma}": call(pair.unrolled.student, gamma=gamma),
        f"lookup γ={gamma}": call(speculative.LOOKUP, gamma=gamma),
    }


def transformers_calls(pair: TrainedPair, prompts: np.ndarray, gamma: int) -> dict[str, Callable]:
    """Returns by name a call that decodes every prompt by transformers."""
    length = prompts.shape[1] + TOKENS.value
    target = transformers_model(pair.target, length)
    draft = transformers_model(pair.student.decoder, length)
    draft.generation_config.num_assistant_tokens = gamma
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    import torch

    def decode(prompt, **settings):
        ids = torch.tensor(prompt[None], dtype=torch.long)
        settings |= {"max_new_tokens": TOKENS.value, "min_new_tokens": None, "do_sample": False}
        text = target.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        return text[0, prompts.shape[1] :].numpy()

    def call(**settings):
        return lambda: [decode(prompt, **settings) for prompt in prompts]

    return {
        "transformers: plain": call(),
        f"transformers: draft γ={gamma}": call(assistant_model=draft),
        f"transformers: lookup γ={gamma}": call(prompt_lookup_num_tokens=gamma),
    }


def main(_):
    if not WORKDIR.value:
        raise ValueError("give a finished run, such as --workdir=runs/drafter")
    pair = TrainedPair.load(WORKDIR.value, LOSS.value)
    if not isinstance(pair.student, DecoderStudent):
        raise ValueError(
            f"{WORKDIR.value} has Kangaroo students, which transformers lacks; train kind `decoder`"
        )
    prompts, count = varied_prompts(pair, TEXTS.value), TEXTS.value
    inputs = pair, prompts, GAMMA.value
    calls = transformers_calls(*inputs) | jaxdiv_calls(*inputs)
    texts = {name: call() for name, call in calls.items()}
    seconds = timing.interleaved(calls, rounds=ROUNDS.value)
    records = []
    for name in calls:
        plain = "transformers: plain" if name.startswith("transformers") else "plain"
        same = sum(map(np.array_equal, texts[name], texts["plain"]))
        records.append(
            {
                "": name,
                "tokens a second": count * TOKENS.value / float(np.median(seconds[name])),
                "× its own plain": float(np.median(seconds[plain] / seconds[name])),
                "texts as ours plain": f"{same} of {count}",
            }
        )
    title = f"Greedy, batch 1, {count} texts of {TOKENS.value} tokens"
    harness.print_table(records, width=110, title=title)
    return 0


if __name__ == "__main__":
    cli.run(main)
