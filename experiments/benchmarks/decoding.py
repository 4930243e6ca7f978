"""Speed of decoding with a run's student, against plain decoding, and where the time goes.

  python -m experiments.distill --config=configs/decoding.py --workdir=runs/decoding
  python -m experiments.benchmarks.decoding --workdir=runs/decoding --loss=kl --gammas=2,4

All contestants take turns in one process. Prompts are cut from held-out documents, every 512
tokens, in random order. Under greedy decoding small models repeat themselves, which flatters every
draft: of the greedy texts only those count in which at most a fifth of the 8-grams occurred before.
The time to read the weights is half that of copying as many bytes. Compilation is timed with an
empty cache.
"""

from experiments.common import startup

startup.begin(__name__)

import dataclasses
import functools
import itertools
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from rich.console import Console

from experiments.benchmarks import harness
from experiments.common import cli, timing
from experiments.common.time_breakdown import DRAFT, PROMPT, VERIFY, milliseconds
from jaxdiv import models, speculative
from jaxdiv.data import pipeline
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import students, teacher
from jaxdiv.training.run_data import TextData

WORKDIR = flags.DEFINE_string("workdir", None, "A finished run.")
LOSS = flags.DEFINE_string("loss", "kl", "The student's loss, as the run's config has it.")
GAMMAS = flags.DEFINE_list("gammas", ["2", "4", "6"], "Drafts a round, separated by commas.")
ETAS = flags.DEFINE_list("etas", ["0", "0.6"], "Thresholds of the early exit, separated by commas.")
TEMPERATURES = flags.DEFINE_list(
    "temperatures", ["0", "1"], "Sampling temperatures, separated by commas."
)
BATCHES = flags.DEFINE_list("batches", ["1", "8"], "Texts decoded together, separated by commas.")
TEXTS = flags.DEFINE_integer("texts", 8, "Prompts.", lower_bound=1)
TOKENS = flags.DEFINE_integer("tokens", 128, "New tokens of each.", lower_bound=1)
ROUNDS = harness.define_rounds(5)
OUTPUT = harness.define_output()

PROMPT_TOKENS = 32
PIECE_TOKENS = 512
MOST_REPEATED = 0.2
_WEIGHTS = "weights"


@dataclasses.dataclass(frozen=True)
class TrainedPair:
    """Target and student of a finished run, and prompts from held-out documents [K, P]."""

    target: models.Decoder
    student: models.Student
    prompts: np.ndarray

    @classmethod
    def load(cls, path: str, loss: str) -> "TrainedPair":
        """Restores the pair from a run's folder, with the student of the run's first seed."""
        workdir = Workdir(path)
        spec, corpus = workdir.spec(), TextData.load(workdir)
        target = teacher.restore(spec.teacher, workdir, corpus.tokenizer.vocab_size)
        student = students.restore_one(path, loss, spec.seed)
        tokens = corpus.splits["test"]
        cuts = np.arange(0, tokens.offsets[-1], PIECE_TOKENS)
        pieces = dataclasses.replace(tokens, offsets=np.union1d(tokens.offsets, cuts))
        prompts, _ = pipeline.prompts(pieces, length=PROMPT_TOKENS)
        return cls(target.module(), student.module(), np.random.default_rng(0).permutation(prompts))

    @functools.cached_property
    def unrolled(self) -> "TrainedPair":
        """The pair with each layer's weights apart, so that no call has to slice stacked ones."""
        return TrainedPair(self.target.unrolled(), self.student.unrolled(), self.prompts)

    def prepare(self, draft, prompts: np.ndarray, **settings) -> speculative.Decoding:
        """Returns a decoding of TOKENS new tokens for each prompt, ready to run."""
        return speculative.prepare(self.target, draft, prompts, max_tokens=TOKENS.value, **settings)

    def decode(self, draft, prompts: np.ndarray, **settings) -> speculative.Decoded:
        """Decodes TOKENS new tokens for each prompt."""
        return self.prepare(draft, prompts, **settings).run()


def repeated(tokens: np.ndarray, size: int = 8) -> float:
    """Returns the share of a text's n-grams that occurred in it before."""
    grams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    return 1 - len(set(grams)) / max(len(grams), 1)


def varied_prompts(pair: TrainedPair, count: int) -> np.ndarray:
    """Returns the first `count` prompts whose greedy texts repeat little.

    Raises:
      ValueError: if there are not so many.
    """
    prompts = []
    for start in range(0, len(pair.prompts), 64):
        block = pair.prompts[start : start + 64]
        texts = pair.decode(None, block, temperature=0.0).tokens
        pairs = zip(block, texts, strict=True)
        prompts += [prompt for prompt, text in pairs if repeated(text) <= MOST_REPEATED]
        if len(prompts) >= count:
            return np.stack(prompts[:count])
    raise ValueError(
        f"only {len(prompts)} of {len(pair.prompts)} greedy texts repeat less than "
        f"{MOST_REPEATED:.0%}"
    )


def contestants(pair: TrainedPair) -> dict[str, dict]:
    """Returns each contestant's settings by its name."""
    settings = {"plain": {"draft": None}}
    gammas = list(map(int, GAMMAS.value))
    for gamma, eta in itertools.product(gammas, map(float, ETAS.value)):
        settings[f"γ={gamma} η={eta:g}"] = {"draft": pair.student, "gamma": gamma, "eta": eta}
    gamma = max(gammas)
    return settings | {f"lookup γ={gamma}": {"draft": speculative.LOOKUP, "gamma": gamma}}


def compile_seconds(pair: TrainedPair, prompts: np.ndarray) -> dict[str, float]:
    """Returns by contestant how long its program takes to compile for so many prompts."""
    programs, seconds = {}, {}
    for name, settings in contestants(pair).items():
        program = name.split(" η=")[0]  # contestants that differ in the threshold share a program
        if program not in programs:
            decoding = pair.prepare(prompts=prompts, **settings)
            start = time.perf_counter()
            decoding.compile()
            programs[program] = time.perf_counter() - start
        seconds[name] = programs[program]
    return seconds


def measure(
    pair: TrainedPair, prompts: np.ndarray, temperature: float, batch: int
) -> tuple[list[dict], float]:
    """Returns a record a contestant, and the milliseconds that reading the weights takes."""
    groups = [prompts[i : i + batch] for i in range(0, len(prompts), batch)]
    results = {}

    def decode(name, settings):
        settings = {"temperature": temperature, **settings}
        results[name] = [pair.decode(prompts=group, **settings) for group in groups]

    entered = contestants(pair).items()
    calls = {name: functools.partial(decode, name, settings) for name, settings in entered}
    seconds = timing.interleaved(calls | {_WEIGHTS: _copy(pair.target)}, rounds=ROUNDS.value)
    plain = [text for result in results["plain"] for text in result.tokens]
    records = []
    for name, decoded in results.items():
        texts = [text for result in decoded for text in result.tokens]
        tokens, counts = sum(map(len, texts)), [result.counts for result in decoded]
        rounds = sum(int(count.target_calls.max()) for count in counts)
        record = {
            "temperature": temperature,
            "batch": batch,
            "setting": name,
            "tokens_a_second": tokens / float(np.median(seconds[name])),
            "tau": tokens / sum(int(count.target_calls.sum()) for count in counts),
            "speed_up": float(np.median(seconds["plain"] / seconds[name])),
            "ms_a_round": 1e3 * float(np.median(seconds[name])) / rounds,
            "draft_steps_a_round": sum(int(count.draft_steps) for count in counts) / rounds,
            "repeated": float(np.mean([repeated(text) for text in texts])),
        }
        if temperature == 0:
            record["as_plain"] = f"{sum(map(np.array_equal, texts, plain))}/{len(texts)}"
        records.append(record)
    return records, 1e3 * float(np.median(seconds[_WEIGHTS])) / 2


def _copy(model: nnx.Module):
    """Returns a call that reads and writes as many bytes as the model's parameters have."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)
    array = jnp.zeros(size // 4, jnp.float32)

    def call():
        nonlocal array
        array = copy(array)
        return array

    return call


def time_of_rounds(
    pair: TrainedPair, prompts: np.ndarray, temperature: float, gamma: int, tau: float
) -> str:
    """Returns a line that says where the time of a chain's rounds goes.

    The parts' milliseconds and the tokens per target call predict a speed-up.
    """
    settings = [{"draft": None}, {"draft": pair.student, "gamma": gamma}]
    decodings = [pair.prepare(prompts=prompts, temperature=temperature, **s) for s in settings]
    costs = milliseconds(decodings, repeats=ROUNDS.value)
    plain, drafted = (
        cost[PROMPT] + rounds * (cost[DRAFT] + cost[VERIFY])
        for cost, rounds in zip(costs, (TOKENS.value, TOKENS.value / tau), strict=True)
    )
    parts = (", ".join(f"{part} {ms:.2f}" for part, ms in cost.items()) for cost in costs)
    return (
        f"γ={gamma}, batch {len(prompts)}, ms: plain: {'; chain: '.join(parts)}; "
        f"predicted speed-up {plain / drafted:.2f}"
    )


def measure_and_print(pair: TrainedPair) -> list[dict]:
    """Prints a table for each temperature and batch and the time of rounds; returns all records."""
    batches, temperatures = list(map(int, BATCHES.value)), list(map(float, TEMPERATURES.value))
    count, console, records = TEXTS.value, Console(width=140), []
    prompts = varied_prompts(pair, count) if 0 in temperatures else pair.prompts[:count]
    compiling = {batch: compile_seconds(pair, prompts[:batch]) for batch in batches}
    for temperature, batch in itertools.product(temperatures, batches):
        measured, reading = measure(pair, prompts, temperature, batch)
        for record in measured:
            record["compile_s"] = compiling[batch][record["setting"]]
        harness.print_table(measured, width=140, title="Decoding")
        console.print(
            f"Reading the weights {reading:.2f} ms; plain decoding "
            f"{measured[0]['ms_a_round'] / reading:.2f} × that a token."
        )
        records += measured
    for gamma in map(int, GAMMAS.value):
        tau = next(r["tau"] for r in records if r["setting"] == f"γ={gamma} η=0")
        console.print(time_of_rounds(pair, prompts[: batches[0]], temperatures[0], gamma, tau))
    return records


def main(_):
    if not WORKDIR.value:
        raise ValueError("give a finished run, such as --workdir=runs/decoding")
    if "0" not in ETAS.value:
        raise ValueError("--etas must have 0: the prediction is for a chain without early exit")
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        records = measure_and_print(TrainedPair.load(WORKDIR.value, LOSS.value).unrolled)
    harness.write_csv(OUTPUT.value, records)
    return 0


if __name__ == "__main__":
    cli.run(main)
