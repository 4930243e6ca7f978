r"""Continues prompts by speculative decoding; shows where each token comes from and what it took.

  python -m experiments.decode --workdir=runs/quickstart --loss=kl --prompt='def main('
  python -m experiments.decode --workdir=runs/quickstart --loss=kl \
    --tree=0,1,00,01,10,000 --temperature=0
  python -m experiments.decode --workdir=runs/quickstart --draft=lookup \
    --prompts_file=prompts.jsonl --output=jsonl
  python -m experiments.decode --workdir=runs/quickstart --baseline

The target is the run's teacher, the draft one of its students. A text ends with the tokenizer's end
of text or after --max_tokens. Without a prompt, the program continues the beginning of the first
held-out document.
"""

from experiments.common import startup

startup.begin(__name__)

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple

from absl import flags

from experiments.common import cli, prompts, time_breakdown, transcript
from jaxdiv import schema, speculative
from jaxdiv.data.chat_templates import ChatEncoder
from jaxdiv.data.tokenizer import Tokenizer
from jaxdiv.models import Drafter, KangarooAdapter
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import run_data, students, teacher

STUDENT = "student"
GAMMA_OF_CHAINS = schema.HEADLINE_GAMMA
KANGAROO_ETA = 0.6  # arXiv 2404.18911, section 4.1
TIMINGS = 5  # of each part of a round; their median counts

WORKDIR = flags.DEFINE_string("workdir", None, "The folder of a finished run.")
DRAFT = flags.DEFINE_enum(
    "draft", STUDENT, [STUDENT, speculative.LOOKUP], "The drafter: a student, or prompt lookup."
)
LOSS = flags.DEFINE_string("loss", None, "The student's loss, as the run's config has it.")
SEED = flags.DEFINE_integer("seed", None, "The student's seed; the run's first if not given.")
PROMPT = flags.DEFINE_string("prompt", None, "The text to continue, taken literally.")
PROMPTS_FILE = flags.DEFINE_string(
    "prompts_file",
    None,
    'Texts to continue. A file whose name ends in .jsonl has a {"prompt": "..."} a line, with '
    "newlines as JSON writes them; any other has a literal prompt a line. Blank lines are skipped.",
)
CHAT = flags.DEFINE_bool(
    "chat", False, "Each prompt is a user's message, which the run's chat template writes."
)
MAX_TOKENS = flags.DEFINE_integer("max_tokens", 128, "New tokens of a text, at most.")
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Of target and draft; 0 is greedy.")
TOP_K = flags.DEFINE_integer("top_k", None, "Only the k likeliest tokens; all if not given.")
TOP_P = flags.DEFINE_float(
    "top_p", None, "Only the likeliest tokens of this mass; all if not given."
)
GAMMA = flags.DEFINE_integer(
    "gamma", None, f"Drafts a round; {GAMMA_OF_CHAINS}, or a tree's depth, if not given."
)
ETA = flags.DEFINE_float(
    "eta",
    None,
    "A chain of drafts ends after a token where the student's largest probability was below this; "
    f"{KANGAROO_ETA} for a Kangaroo student if not given, else 0, which never ends it.",
)
TREE = flags.DEFINE_string(
    "tree", None, "A tree of drafts, such as 0,1,00,01: each node's ranks from the root."
)
RULE = flags.DEFINE_enum(
    "rule", schema.SAMPLING, list(speculative.RULES), "How drafts are accepted; typical is lossy."
)
NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", 1, "Texts for each prompt.", lower_bound=1, upper_bound=2**16
)
SAMPLING_SEED = flags.DEFINE_integer("sampling_seed", 0, "The first text's; the next count up.")
BASELINE = flags.DEFINE_bool("baseline", False, "Decode without drafts, whatever other flags say.")
TIME_SPLIT = flags.DEFINE_bool("time_split", False, "Time drafting and verification apart too.")
OUTPUT = flags.DEFINE_enum("output", "text", ["text", "jsonl"], "Text, or a JSON object a text.")


class Drafting(NamedTuple):
    """A draft, and how it drafts.

    Attributes:
      draft: a student, `lookup`, or None for plain decoding.
      options: of `speculative.prepare`; plain decoding has none.
      entries: in each JSON line; plain decoding has none.
    """

    draft: Drafter | str | None
    options: dict[str, Any]
    entries: dict[str, Any]

    @property
    def lossless(self) -> bool:
        return self.draft is None or speculative.RULES[self.options["rule"]].lossless

    @property
    def sentence(self) -> str:
        """Returns what drafted and how, in words."""
        if self.draft is None:
            return "Plain decoding, without drafts."
        loss, seed = self.entries["loss"], self.entries["seed"]
        student = f" of {loss}, seed {seed}" if loss else ""
        drafts = f"a chain of {self.options['gamma']}, eta {self.options['eta']:g}"
        if self.options["tree"]:
            drafts = f"the tree {TREE.value}"
        return (
            f"Drafted by {self.entries['draft']}{student}: {drafts}; "
            f"rule {self.options['rule']}, temperature {TEMPERATURE.value:g}."
        )


def main(_):
    if not WORKDIR.value:
        raise ValueError("give a finished run, such as --workdir=runs/quickstart")
    run = Workdir(WORKDIR.value)
    run_data.require_text(run.spec().data)
    tokenizer = Tokenizer.load(run.tokenizer)
    drafting = Drafting(None, {}, {}) if BASELINE.value else _load_drafting(run)
    loaded = prompts.load(run, prompt=PROMPT.value, path=PROMPTS_FILE.value)
    texts = [text for text in loaded for _ in range(NUM_SAMPLES.value)]
    page = transcript.Transcript(tokenizer, stderr=OUTPUT.value == "jsonl")
    streams = OUTPUT.value == "text" and len(texts) == 1 and page.is_terminal
    decoding = _decoding(run, drafting, tokenizer, texts, page.stream if streams else None)
    compiled, compile_seconds = _timed(decoding.compile)
    if streams:
        page.begin(texts[0])
    decoded, seconds = _timed(compiled)
    if streams:
        page.end()
    elif OUTPUT.value == "text":
        page.texts(texts, _seeds(texts), decoded)
    else:
        for line in _json_lines(drafting, texts, tokenizer, decoded):
            print(line)
    page.print(f"\n{drafting.sentence}")
    page.statistics(decoded, seconds=seconds, compile_seconds=compile_seconds)
    _print_notes(page, drafting, decoding)
    return 0


def _load_drafting(run: Workdir) -> Drafting:
    """Returns the drafting that the flags ask for."""
    tree = None if TREE.value is None else speculative.parse(TREE.value)
    draft, seed = speculative.LOOKUP, None
    if DRAFT.value == STUDENT:
        spec = run.spec()
        names = spec.student_stage.members
        if LOSS.value is None:
            raise ValueError(
                f"give the student's loss, such as --loss={names[0]}; "
                f"{run.root} has {', '.join(names)}"
            )
        seed = spec.seeds[0] if SEED.value is None else SEED.value
        student = students.restore_one(str(run.root), loss=LOSS.value, seed=seed)
        draft = student.module().unrolled()
    elif LOSS.value is not None or SEED.value is not None:
        raise ValueError(f"--loss and --seed are of a student; --draft={DRAFT.value} has none.")
    gamma, eta = GAMMA.value, ETA.value
    if gamma is None:
        gamma = GAMMA_OF_CHAINS if tree is None else tree.depth
    if eta is None:
        eta = KANGAROO_ETA if isinstance(draft, KangarooAdapter) and tree is None else 0.0
    options = {"rule": RULE.value, "gamma": gamma, "eta": eta, "tree": tree}
    entries = {"draft": DRAFT.value, "loss": LOSS.value, "seed": seed, "rule": RULE.value}
    return Drafting(draft, options, entries)


def _decoding(
    run: Workdir,
    drafting: Drafting,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    stream: Callable | None,
) -> speculative.Decoding:
    """Prepares the decoding of all texts by the run's teacher."""
    if CHAT.value:
        encoder = ChatEncoder(tokenizer)
        tokens = [encoder.prompt([("user", text)]) for text in texts]
    else:
        tokens = [tokenizer.begin + tokenizer.encode(text) for text in texts]
    target = teacher.restore(run.spec().teacher, run, tokenizer.vocab_size).module().unrolled()
    return speculative.prepare(
        target,
        drafting.draft,
        tokens,
        max_tokens=MAX_TOKENS.value,
        temperature=TEMPERATURE.value,
        top_k=TOP_K.value,
        top_p=TOP_P.value,
        stop=tokenizer.end_of_text,
        seeds=_seeds(texts),
        stream=stream,
        **drafting.options,
    )


def _seeds(texts: Sequence[str]) -> list[int]:
    """Returns the sampling seed of each text."""
    return [SAMPLING_SEED.value + i for i in range(len(texts))]


def _json_lines(
    drafting: Drafting, texts: Sequence[str], tokenizer: Tokenizer, decoded: speculative.Decoded
) -> Iterator[str]:
    """Yields a JSON object for each text."""
    for i, (text, seed) in enumerate(zip(texts, _seeds(texts), strict=True)):
        line = {
            "prompt": text,
            "tokens": decoded.tokens[i].tolist(),
            "text": tokenizer.decode(decoded.tokens[i], continues=True),
            "target_calls": int(decoded.counts.target_calls[i]),
            "accepted": int((decoded.origin[i] == speculative.DRAFTED).sum()),
            **{name: drafting.entries.get(name) for name in ("draft", "loss", "seed", "rule")},
            "lossless": drafting.lossless,
            "temperature": TEMPERATURE.value,
            "sampling_seed": seed,
        }
        yield json.dumps(line)


def _print_notes(
    page: transcript.Transcript, drafting: Drafting, decoding: speculative.Decoding
) -> None:
    """Prints the parts of the time if asked, and that a rule is lossy if it is."""
    if TIME_SPLIT.value:
        ((cost,), _) = _timed(lambda: time_breakdown.milliseconds([decoding], repeats=TIMINGS))
        page.print(time_breakdown.sentence(cost))
    if not drafting.lossless:
        page.print(
            f"The rule `{RULE.value}` is lossy: the texts are not distributed as the target's own."
        )


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Returns (the function's result, its seconds).

    A signal ends the process at once, since neither XLA nor JAX's own exit survives one here.
    """
    start = time.perf_counter()
    try:
        # Submitting stands inside the block too: a signal there would leave a thread that its pool
        # doesn't know yet, and Python would wait for it forever.
        future = futures.ThreadPoolExecutor(1).submit(function)
        return future.result(), time.perf_counter() - start
    except startup.Interrupted as interrupted:
        cli.log("\nerror: interrupted")
        os._exit(128 + interrupted.signum)


if __name__ == "__main__":
    cli.run(main)
