"""Continues prompts by speculative decoding, and says where each token comes from and what it took.

  python -m experiments.decode --workdir=runs/quickstart --loss=kl --prompt='def main('
  python -m experiments.decode --workdir=runs/quickstart --loss=kl --tree=0,1,00,01,10,000
  --temperature=0 python -m experiments.decode --workdir=runs/quickstart --draft=lookup
  --prompts_file=prompts.jsonl --output=jsonl python -m experiments.decode --workdir=runs/quickstart
  --baseline

The target is the run's teacher, the draft one of its students. A text ends with the tokenizer's end
of text or after --max_tokens. Without a prompt, the beginning of the first held-out document is
continued.
"""

from experiments.common import startup

startup.begin(__name__)

import dataclasses
import json
import os
import time
from concurrent import futures

from absl import flags

from experiments.common import cli, interrupts, prompts, time_breakdown, transcript
from jaxdiv import speculative
from jaxdiv.data.tokenizer import Tokenizer
from jaxdiv.models import Student
from jaxdiv.runs import config as run_config
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import run_data, students, teacher

STUDENT = "student"
GAMMA_OF_CHAINS = 4
KANGAROO_ETA = 0.6  # arXiv 2404.18911, section 4.1
TIMINGS = 5  # of each part; the medians count

WORKDIR = flags.DEFINE_string("workdir", None, "The folder of a finished run.")
DRAFT = flags.DEFINE_enum(
    "draft", STUDENT, [STUDENT, speculative.LOOKUP], "What drafts: a student, or prompt lookup."
)
LOSS = flags.DEFINE_string("loss", None, "The student's loss, as the run's config has it.")
SEED = flags.DEFINE_integer("seed", None, "The student's seed; the run's first if not given.")
PROMPT = flags.DEFINE_string("prompt", None, "The text to continue, as it stands.")
PROMPTS_FILE = flags.DEFINE_string(
    "prompts_file",
    None,
    'Texts to continue. A file whose name ends in .jsonl has a {"prompt": "..."} a line, with newlines as JSON writes '
    "them; any other has a prompt a line as it stands. Blank lines are skipped.",
)
MAX_TOKENS = flags.DEFINE_integer("max_tokens", 128, "New tokens of a text, at most.")
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Of target and draft; 0 is greedy.")
TOP_K = flags.DEFINE_integer("top_k", None, "Only the k likeliest tokens; all if not given.")
TOP_P = flags.DEFINE_float(
    "top_p", None, "Only the likeliest tokens that have so much mass; all if not given."
)
GAMMA = flags.DEFINE_integer(
    "gamma", None, f"Drafts a round, at most; {GAMMA_OF_CHAINS}, or a tree's depth, if not given."
)
ETA = flags.DEFINE_float(
    "eta",
    None,
    "A chain of drafts ends after a token where the student's largest probability was below this; "
    f"{KANGAROO_ETA} for a Kangaroo student if not given, else 0, which never ends it.",
)
TREE = flags.DEFINE_string(
    "tree",
    None,
    "A tree of drafts in place of a chain, such as 0,1,00,01: each node's ranks from the root.",
)
RULE = flags.DEFINE_enum(
    "rule", "sampling", list(speculative.RULES), "How drafts are accepted; typical is lossy."
)
NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", 1, "Texts for each prompt.", lower_bound=1, upper_bound=2**16
)
SAMPLING_SEED = flags.DEFINE_integer(
    "sampling_seed", 0, "Of the first text; the next have the next ones."
)
BASELINE = flags.DEFINE_bool(
    "baseline", False, "Decode without drafts, whatever else is said of them."
)
TIME_SPLIT = flags.DEFINE_bool(
    "time_split", False, "Time drafting and verification apart too, which compiles more."
)
OUTPUT = flags.DEFINE_enum(
    "output", "text", ["text", "jsonl"], "For people, or a JSON object a text."
)


@dataclasses.dataclass(frozen=True)
class Drafting:
    """How drafts are made; of plain decoding, None everywhere.

    Attributes:
      draft: what `speculative.prepare` takes.
      name: the draft's, as --draft has it.
      loss, seed: of a student.
      rule, gamma, eta, tree: as `speculative.prepare` has them.
    """

    draft: Student | str | None = None
    name: str | None = None
    loss: str | None = None
    seed: int | None = None
    rule: str | None = None
    gamma: int | None = None
    eta: float | None = None
    tree: speculative.Tree | None = None

    @property
    def lossless(self) -> bool:
        return self.rule is None or speculative.RULES[self.rule].lossless

    @property
    def options(self) -> dict:
        """The arguments of `speculative.prepare` that are about drafting."""
        names = () if self.draft is None else ("rule", "gamma", "eta", "tree")
        return {name: getattr(self, name) for name in names}

    @property
    def told(self) -> dict:
        """What a line of JSON tells of it."""
        names = {"draft": self.name, "loss": self.loss, "seed": self.seed}
        return {**names, "rule": self.rule, "lossless": self.lossless}

    def __str__(self) -> str:
        if self.draft is None:
            return "Plain decoding, without drafts."
        student = f" of {self.loss}, seed {self.seed}" if self.loss else ""
        drafts = (
            f"a chain of {self.gamma}, eta {self.eta:g}"
            if self.tree is None
            else f"the tree {TREE.value}"
        )
        return f"Drafted by {self.name}{student}: {drafts}; rule {self.rule}, temperature {TEMPERATURE.value:g}."


def main(_):
    if not WORKDIR.value:
        raise ValueError("give a finished run, such as --workdir=runs/quickstart")
    run = Workdir(WORKDIR.value)
    config = run.config()
    run_data.refuse_images(config)
    bpe = Tokenizer.load(run.tokenizer)
    drafting = Drafting() if BASELINE.value else _drafting(run, config)
    given = prompts.load(run, prompt=PROMPT.value, path=PROMPTS_FILE.value)
    texts = [text for text in given for _ in range(NUM_SAMPLES.value)]
    seeds = [SAMPLING_SEED.value + i for i in range(len(texts))]
    page = transcript.Transcript(bpe, stderr=OUTPUT.value == "jsonl")
    streams = OUTPUT.value == "text" and len(texts) == 1 and page.is_terminal
    decoding = speculative.prepare(
        teacher.restore(config, run, bpe.vocab_size).module().unrolled(),
        drafting.draft,
        [bpe.encode(text) for text in texts],
        max_tokens=MAX_TOKENS.value,
        temperature=TEMPERATURE.value,
        top_k=TOP_K.value,
        top_p=TOP_P.value,
        stop=bpe.end_of_text,
        seeds=seeds,
        stream=page.stream if streams else None,
        **drafting.options,
    )
    compiled, compile_seconds = _timed(decoding.compile)
    if streams:
        page.begin(texts[0])
    decoded, seconds = _timed(compiled)
    if OUTPUT.value == "jsonl":
        _write_json(texts, seeds, decoded, bpe, drafting)
    elif streams:
        page.end()
    else:
        page.texts(texts, seeds, decoded)
    page.say(f"\n{drafting}")
    page.statistics(decoded, seconds=seconds, compile_seconds=compile_seconds)
    if TIME_SPLIT.value:
        ((cost,), _) = _timed(lambda: time_breakdown.milliseconds([decoding], repeats=TIMINGS))
        page.say(time_breakdown.sentence(cost))
    if not drafting.lossless:
        page.say(
            f"The rule `{drafting.rule}` is lossy: the texts are not distributed as the target's own."
        )
    return 0


def _drafting(run, config):
    """What the flags say."""
    tree = None if TREE.value is None else speculative.parse(TREE.value)
    gamma, eta = GAMMA.value, ETA.value
    if gamma is None:
        gamma = GAMMA_OF_CHAINS if tree is None else tree.depth
    student = DRAFT.value == STUDENT
    if eta is None:
        eta = (
            KANGAROO_ETA
            if student and tree is None and config["student"]["kind"] == "kangaroo"
            else 0.0
        )
    how = {"name": DRAFT.value, "rule": RULE.value, "gamma": gamma, "eta": eta, "tree": tree}
    if not student:
        if LOSS.value is not None or SEED.value is not None:
            raise ValueError(f"--loss and --seed are of a student; --draft={DRAFT.value} has none.")
        return Drafting(speculative.LOOKUP, **how)
    seed = students.seeds(config)[0] if SEED.value is None else SEED.value
    return Drafting(_student(run, config, seed), loss=LOSS.value, seed=seed, **how)


def _student(run, config, seed):
    if LOSS.value is None:
        names = [loss.text for loss in run_config.losses(config)]
        raise ValueError(
            f"give the student's loss, such as --loss={names[0]}; {run.root} has {', '.join(names)}"
        )
    return students.restore_one(str(run.root), loss=LOSS.value, seed=seed).module().unrolled()


def _timed(function):
    """(what it gives, seconds). A signal ends the process at once, for which neither XLA nor JAX's
    own exit is fit."""
    start = time.perf_counter()
    try:  # submitting, too: a thread that its pool has not yet noted down would keep Python from ever ending
        made = futures.ThreadPoolExecutor(1).submit(function)
        return made.result(), time.perf_counter() - start
    except interrupts.Interrupted as interrupted:
        cli.log("\nerror: interrupted")
        os._exit(128 + interrupted.signum)


def _write_json(texts, seeds, decoded, bpe, drafting):
    for i, (text, seed) in enumerate(zip(texts, seeds, strict=True)):
        line = {
            "prompt": text,
            "tokens": decoded.tokens[i].tolist(),
            "text": bpe.decode(decoded.tokens[i]),
            "target_calls": int(decoded.counts.target_calls[i]),
            "accepted": int((decoded.origin[i] == speculative.DRAFTED).sum()),
            **drafting.told,
            "temperature": TEMPERATURE.value,
            "sampling_seed": seed,
        }
        print(json.dumps(line))


if __name__ == "__main__":
    cli.run(main)
