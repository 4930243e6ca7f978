"""How fast a run's student makes decoding, against plain decoding of the same prompts, and where
the time goes.

  python -m experiments.distill --config=configs/decoding.py --workdir=runs/decoding
  python -m experiments.benchmarks.decoding --workdir=runs/decoding --loss=kl --gammas=2,4
  --etas=0,0.6

All contestants take turns in one process. Prompts are cut from held-out documents, every 512
tokens, in random order. Under greedy decoding small models repeat themselves, which flatters every
draft: of the greedy texts only those count in which at most a fifth of the 8-grams stood before.
  The reading time of the weights is that of copying as many bytes,
halved. Compiling is timed with an empty cache.
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
import pandas as pd
from absl import flags
from flax import nnx
from rich.console import Console
from rich.table import Table

from experiments.common import cli, time_breakdown, timing
from jaxdiv import files, models, speculative
from jaxdiv.data import pipeline
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import students, teacher
from jaxdiv.training.run_data import TextData

WORKDIR = flags.DEFINE_string("workdir", None, "A finished run.")
LOSS = flags.DEFINE_string("loss", "kl", "The student's loss, as the run's config has it.")
GAMMAS = flags.DEFINE_list("gammas", ["2", "4", "6"], "Drafts a round, by commas.")
ETAS = flags.DEFINE_list("etas", ["0", "0.6"], "Thresholds of the early exit, by commas.")
TEMPERATURES = flags.DEFINE_list("temperatures", ["0", "1"], "Sampling temperatures, by commas.")
BATCHES = flags.DEFINE_list("batches", ["1", "8"], "Texts decoded together, by commas.")
TEXTS = flags.DEFINE_integer("texts", 8, "Prompts.", lower_bound=1)
TOKENS = flags.DEFINE_integer("tokens", 128, "New tokens of each.", lower_bound=1)
ROUNDS = flags.DEFINE_integer(
    "rounds", 5, "How often each is timed; the medians count.", lower_bound=1
)
OUTPUT = flags.DEFINE_string("output", None, "A CSV file for the numbers.")

PROMPT_TOKENS = 32
PIECE_TOKENS = 512
MOST_REPEATED = 0.2
_WEIGHTS = "weights"


@dataclasses.dataclass(frozen=True)
class Run:
    """A target and a student of a finished run, and prompts from held-out documents [K, P]."""

    target: models.Decoder
    student: models.Student
    prompts: np.ndarray

    @classmethod
    def load(cls, path: str, loss: str) -> "Run":
        workdir = Workdir(path)
        config, corpus = workdir.config(), TextData.load(workdir)
        target = teacher.restore(config, workdir, corpus.tokenizer.vocab_size)
        student = students.restore_one(path, loss, config["seed"])
        made = [model.module() for model in (target, student)]
        return cls(*made, _prompts(corpus.splits["test"]))

    @functools.cached_property
    def unrolled(self) -> "Run":
        """With each layer's weights apart, so that no call has to take them out of the stacked
        ones."""
        return Run(self.target.unrolled(), self.student.unrolled(), self.prompts)

    def prepare(self, draft, prompts, **settings):
        return speculative.prepare(self.target, draft, prompts, max_tokens=TOKENS.value, **settings)

    def decode(self, draft, prompts, **settings):
        return self.prepare(draft, prompts, **settings).run()


def _prompts(held_out):
    cuts = np.arange(0, held_out.offsets[-1], PIECE_TOKENS)
    pieces = dataclasses.replace(held_out, offsets=np.union1d(held_out.offsets, cuts))
    prompts, _ = pipeline.prompts(pieces, length=PROMPT_TOKENS)
    return np.random.default_rng(0).permutation(prompts)


def repeated(tokens: np.ndarray, size: int = 8) -> float:
    """The share of a text's n-grams that stood in it before."""
    grams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    return 1 - len(set(grams)) / max(len(grams), 1)


def telling(run: Run, count: int) -> np.ndarray:
    """The first `count` prompts whose greedy texts repeat little. Raises ValueError if there are
    not so many."""
    found = []
    for start in range(0, len(run.prompts), 64):
        some = run.prompts[start : start + 64]
        texts = run.decode(None, some, temperature=0.0).tokens
        found += [p for p, text in zip(some, texts, strict=True) if repeated(text) <= MOST_REPEATED]
        if len(found) >= count:
            return np.stack(found[:count])
    raise ValueError(
        f"only {len(found)} of {len(run.prompts)} greedy texts repeat less than {MOST_REPEATED:.0%}"
    )


def contestants(run: Run) -> dict:
    """Settings of each by its name."""
    made = {"plain": {"draft": None}}
    for gamma, eta in itertools.product(map(int, GAMMAS.value), map(float, ETAS.value)):
        made[f"γ={gamma} η={eta:g}"] = {"draft": run.student, "gamma": gamma, "eta": eta}
    gamma = max(map(int, GAMMAS.value))
    return made | {f"lookup γ={gamma}": {"draft": speculative.LOOKUP, "gamma": gamma}}


def compile_seconds(run: Run, prompts: np.ndarray) -> dict[str, float]:
    """What each contestant takes to compile for so many prompts, at any temperature and eta."""
    seconds = {}
    for name, settings in contestants(run).items():
        if _compiled(name) not in seconds:
            decoding = run.prepare(prompts=prompts, **settings)
            start = time.perf_counter()
            decoding.compile()
            seconds[_compiled(name)] = time.perf_counter() - start
    return seconds


def _compiled(name):
    """What contestants share that differ in eta alone."""
    return name.split(" η=")[0]


def measure(
    run: Run, prompts: np.ndarray, temperature: float, batch: int
) -> tuple[pd.DataFrame, float]:
    """A row a contestant: its speed, target calls and speed-up over plain decoding; and ms of
    reading the weights."""
    groups = [prompts[i : i + batch] for i in range(0, len(prompts), batch)]
    decoded = {}

    def call(name, settings):
        def decode():
            decoded[name] = [
                run.decode(prompts=group, temperature=temperature, **settings) for group in groups
            ]

        return decode

    calls = {name: call(name, settings) for name, settings in contestants(run).items()}
    seconds = timing.interleaved(calls | {_WEIGHTS: _copy(run.target)}, rounds=ROUNDS.value)
    plain = _texts(decoded["plain"])
    rows = []
    for name, results in decoded.items():
        texts = _texts(results)
        tokens = sum(map(len, texts))
        target_calls = sum(int(result.counts.target_calls.sum()) for result in results)
        rounds = sum(int(result.counts.target_calls.max()) for result in results)
        rows.append(
            {
                "temperature": temperature,
                "batch": batch,
                "setting": name,
                "tokens_a_second": tokens / np.median(seconds[name]),
                "tau": tokens / target_calls,
                "speed_up": np.median(seconds["plain"] / seconds[name]),
                "ms_a_round": 1e3 * np.median(seconds[name]) / rounds,
                "draft_steps_a_round": sum(int(result.counts.draft_steps) for result in results)
                / rounds,
                "repeated": np.mean([repeated(text) for text in texts]),
            }
            | (
                {}
                if temperature
                else {"as_plain": f"{sum(map(np.array_equal, texts, plain))}/{len(texts)}"}
            )
        )
    return pd.DataFrame(rows), 1e3 * float(np.median(seconds[_WEIGHTS])) / 2


def _texts(results):
    return [text for result in results for text in result.tokens]


def _copy(model):
    """A call that reads and writes as many bytes as the model's parameters are."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)
    held = [jnp.zeros(size // 4, jnp.float32)]

    def call():
        held[0] = copy(held[0])
        return held[0]

    return call


def predicted(
    measured: pd.DataFrame, plain: dict[str, float], drafted: dict[str, float], gamma: int
) -> float:
    """A text's speed-up as the parts' times and the target calls of a chain of gamma, without a
    threshold, give it."""
    row = measured[measured.setting == f"γ={gamma} η=0"].iloc[0]

    def taken(cost, rounds):
        return cost[time_breakdown.PROMPT] + rounds * (
            cost[time_breakdown.DRAFT] + cost[time_breakdown.VERIFY]
        )

    return taken(plain, TOKENS.value) / taken(drafted, TOKENS.value / row.tau)


def _split(run, prompts, temperature, measured, gamma):
    """Where the time of a chain's rounds goes, in words."""
    made = [{"draft": None}, {"draft": run.student, "gamma": gamma}]
    decodings = [
        run.prepare(prompts=prompts, temperature=temperature, **settings) for settings in made
    ]
    costs = time_breakdown.milliseconds(decodings, repeats=ROUNDS.value)
    told = (", ".join(f"{part} {ms:.2f}" for part, ms in cost.items()) for cost in costs)
    return (
        f"γ={gamma}, batch {len(prompts)}, ms: plain: {'; chain: '.join(told)}; "
        f"predicted speed-up {predicted(measured, *costs, gamma):.2f}"
    )


def table(measured: pd.DataFrame) -> Table:
    made = Table(title="Decoding", title_justify="left")
    for column in measured.columns:
        made.add_column(
            column.replace("_", " "), justify="left" if column == "setting" else "right"
        )
    for row in measured.itertuples(index=False):
        made.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row))
    return made


def main(_):
    if not WORKDIR.value:
        raise ValueError("give a finished run, such as --workdir=runs/decoding")
    gammas, batches = list(map(int, GAMMAS.value)), list(map(int, BATCHES.value))
    if "0" not in ETAS.value:
        raise ValueError("--etas must have 0: what is predicted is a chain that never exits early")
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        frames = list(_frames(Run.load(WORKDIR.value, LOSS.value).unrolled, gammas, batches))
    if OUTPUT.value:
        files.write_text(OUTPUT.value, pd.concat(frames).to_csv(index=False))
    return 0


def _frames(run, gammas, batches):
    """Measures and prints; a frame for each temperature and batch."""
    temperatures = list(map(float, TEMPERATURES.value))
    prompts = telling(run, TEXTS.value) if 0 in temperatures else run.prompts[: TEXTS.value]
    console = Console(width=140)
    compiling = {batch: compile_seconds(run, prompts[:batch]) for batch in batches}
    first = None
    for temperature, batch in itertools.product(temperatures, batches):
        measured, reading = measure(run, prompts, temperature, batch)
        measured["compile_s"] = measured.setting.map(_compiled).map(compiling[batch])
        first = measured if first is None else first
        console.print(table(measured))
        plain = measured.ms_a_round.iloc[0]
        console.print(
            f"Reading the weights {reading:.2f} ms; plain decoding {plain / reading:.2f} × that a token."
        )
        yield measured
    for gamma in gammas:
        console.print(_split(run, prompts[: batches[0]], temperatures[0], first, gamma))


if __name__ == "__main__":
    cli.run(main)
