"""How fast a run's student makes decoding, against plain decoding of the same prompts, and where the time goes.

  python -m experiments.distill --config=configs/decoding.py --workdir=runs/decoding
  python -m experiments.benchmarks.decoding --workdir=runs/decoding --loss=kl --gammas=2,4 --etas=0,0.6

All contestants take turns in one process. Prompts are cut from held-out documents, every 512 tokens, in random order.
Under greedy decoding small models repeat themselves, which flatters every draft: of the greedy texts only those count
in which at most a fifth of the 8-grams stood before. The reading time of the weights is that of copying as many bytes,
halved.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from absl import flags
from flax import nnx
from rich.console import Console
from rich.table import Table

from experiments import cli
from experiments.benchmarks import timing
from jaxdiv import files, models, speculative, warps
from jaxdiv.data import pipeline
from jaxdiv.speculative import drafting, loop, rules, trees
from jaxdiv.training import students, teacher
from jaxdiv.training.corpus import Corpus
from jaxdiv.training.workdir import Workdir

WORKDIR = flags.DEFINE_string("workdir", None, "A finished run.")
LOSS = flags.DEFINE_string("loss", "kl", "The student's loss, as the run's config has it.")
GAMMAS = flags.DEFINE_list("gammas", ["2", "4", "6"], "Drafts a round, by commas.")
ETAS = flags.DEFINE_list("etas", ["0", "0.6"], "Thresholds of the early exit, by commas.")
TEMPERATURES = flags.DEFINE_list("temperatures", ["0", "1"], "Sampling temperatures, by commas.")
BATCHES = flags.DEFINE_list("batches", ["1", "8"], "Texts decoded together, by commas.")
TEXTS = flags.DEFINE_integer("texts", 8, "Prompts.", lower_bound=1)
TOKENS = flags.DEFINE_integer("tokens", 128, "New tokens of each.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 5, "How often each is timed; the medians count.", lower_bound=1)
OUTPUT = flags.DEFINE_string("output", None, "A CSV file for the numbers.")

PROMPT_TOKENS = 32
PIECE_TOKENS = 512
MOST_REPEATED = 0.2
_REPEATS = 32  # of a part, in one compiled loop


@dataclasses.dataclass(frozen=True)
class Run:
    """A target and a student of a finished run, and prompts from held-out documents [K, P]."""

    target: models.Decoder
    student: models.Student
    prompts: np.ndarray

    @classmethod
    def load(cls, path: str, loss: str) -> "Run":
        workdir = Workdir(path)
        config, corpus = workdir.config(), Corpus.load(workdir)
        target = teacher.restore(config, workdir, corpus.tokenizer.vocab_size)
        student = students.restore_one(path, loss, config["seed"])
        made = [model.module() for model in (target, student)]
        return cls(*made, _prompts(corpus.splits["test"]))

    @functools.cached_property
    def unrolled(self) -> "Run":
        """With each layer's weights apart, so that no call has to take them out of the stacked ones."""
        return Run(self.target.unrolled(), self.student.unrolled(), self.prompts)

    def decode(self, draft, prompts, **settings):
        return speculative.decode(self.target, draft, prompts, max_tokens=TOKENS.value, **settings)


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
    """The first `count` prompts whose greedy texts repeat little. Raises ValueError if there are not so many."""
    found = []
    for start in range(0, len(run.prompts), 64):
        some = run.prompts[start : start + 64]
        texts = run.decode(None, some, temperature=0.0).tokens
        found += [p for p, text in zip(some, texts, strict=True) if repeated(text) <= MOST_REPEATED]
        if len(found) >= count:
            return np.stack(found[:count])
    raise ValueError(f"only {len(found)} of {len(run.prompts)} greedy texts repeat less than {MOST_REPEATED:.0%}")


def contestants(run: Run) -> dict:
    """Settings of each by its name."""
    made = {"plain": {"draft": None}}
    for gamma, eta in itertools.product(map(int, GAMMAS.value), map(float, ETAS.value)):
        made[f"γ={gamma} η={eta:g}"] = {"draft": run.student, "gamma": gamma, "eta": eta}
    gamma = max(map(int, GAMMAS.value))
    return made | {f"lookup γ={gamma}": {"draft": speculative.LOOKUP, "gamma": gamma}}


def measure(run: Run, prompts: np.ndarray, temperature: float, batch: int) -> pd.DataFrame:
    """A row a contestant: seconds and target calls of all texts, and what its speed-up over plain decoding is."""
    groups = [prompts[i : i + batch] for i in range(0, len(prompts), batch)]
    decoded = {}

    def call(name, settings):
        def decode():
            decoded[name] = [run.decode(prompts=group, temperature=temperature, **settings) for group in groups]

        return decode

    calls = {name: call(name, settings) for name, settings in contestants(run).items()}
    seconds = timing.interleaved(calls, rounds=ROUNDS.value)
    rows = []
    for name, results in decoded.items():
        tokens = sum(len(text) for result in results for text in result.tokens)
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
                "draft_steps_a_round": sum(int(result.counts.draft_steps) for result in results) / rounds,
                "repeated": np.mean([repeated(text) for result in results for text in result.tokens]),
            }
        )
    return pd.DataFrame(rows)


def parts(run: Run, gamma: int, batch: int) -> dict[str, float]:
    """Milliseconds of each part of a round, and of reading the weights once."""
    length = PROMPT_TOKENS + TOKENS.value
    sampling = drafting.Sampling(
        warps.Warp(jnp.zeros(batch)), rules.Keys(jax.vmap(jax.random.key)(jnp.arange(batch, dtype=jnp.uint32)))
    )
    contestants = {"weights": _copy(run.target)}
    for name, tree, model in (("plain", 0, [run.target]), ("round", gamma, [run.target, run.student])):
        kind = "chain" if tree else "none"
        plan = loop.Plan(kind, trees.chain(tree), "sampling" if tree else "greedy_draft", length + tree)
        contestants |= _parts_of(name, plan, model, sampling, batch)
    seconds = timing.interleaved(contestants, rounds=ROUNDS.value)
    scale = {"weights": 1e3 / 2}
    return {name: float(np.median(t)) * scale.get(name, 1e3 / _REPEATS) for name, t in seconds.items()}


def _parts_of(name, plan, model, sampling, batch):
    """The round's draft and its verification, each repeated in one loop that writes the caches in place."""
    graphs, params = zip(*map(nnx.split, model), strict=True)
    middle = jnp.full(batch, PROMPT_TOKENS + TOKENS.value // 2, jnp.int32)

    def texts(draft):
        caches = (draft.target.init_cache(batch, plan.slots), draft.init_cache(batch, plan.slots))
        return drafting.Texts(jnp.zeros((batch, plan.slots), jnp.int32), middle, middle > 0, *caches)

    def repeat(step, start):
        return jax.lax.fori_loop(0, _REPEATS, lambda _, carry: step(carry), start)

    @jax.jit
    def propose(params):
        draft = loop.make_draft(plan, list(map(nnx.merge, graphs, params)), jnp.float32(0))

        def step(texts):
            made = draft.propose(texts, sampling)
            return texts._replace(target_cache=made.target_cache, draft_cache=made.draft_cache)

        return repeat(step, texts(draft))  # the caches too: what nothing needs is never computed

    @jax.jit
    def verify(params):
        draft = loop.make_draft(plan, list(map(nnx.merge, graphs, params)), jnp.float32(0))
        proposal = draft.propose(texts(draft), sampling)

        def step(carry):
            cache, total = carry
            verdict, cache = loop.verify(plan, draft, middle - 1, proposal._replace(target_cache=cache), sampling)
            return cache, total + verdict.token

        return repeat(step, (proposal.target_cache, jnp.zeros(batch, jnp.int32)))[1]

    return {f"{name}: draft": lambda: propose(params), f"{name}: verify": lambda: verify(params)}


def _copy(model):
    size = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)
    held = [jnp.zeros(size, jnp.float32)]

    def call():
        held[0] = copy(held[0])
        return held[0]

    return call


def predicted(measured: pd.DataFrame, cost: dict[str, float], gamma: int) -> float:
    """The speed-up that the parts' times and the target calls give for a chain of gamma that never exits early."""
    row = measured[measured.setting == f"γ={gamma} η=0"].iloc[0]
    return row.tau * (cost["plain: draft"] + cost["plain: verify"]) / (cost["round: draft"] + cost["round: verify"])


def table(measured: pd.DataFrame) -> Table:
    made = Table(title="Decoding", title_justify="left")
    for column in measured.columns:
        made.add_column(column.replace("_", " "), justify="left" if column == "setting" else "right")
    for row in measured.itertuples(index=False):
        made.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row))
    return made


def main(_):
    if not WORKDIR.value:
        raise ValueError("give a finished run, such as --workdir=runs/decoding")
    gammas, batches = list(map(int, GAMMAS.value)), list(map(int, BATCHES.value))
    if "0" not in ETAS.value:
        raise ValueError("--etas must have 0: what is predicted is a chain that never exits early")
    run = Run.load(WORKDIR.value, LOSS.value).unrolled
    temperatures = list(map(float, TEMPERATURES.value))
    prompts = telling(run, TEXTS.value) if 0 in temperatures else run.prompts[: TEXTS.value]
    console = Console(width=130)
    frames = []
    for temperature, batch in itertools.product(temperatures, batches):
        frames.append(measure(run, prompts, temperature, batch))
        console.print(table(frames[-1]))
    for gamma in gammas:
        cost = parts(run, gamma, batches[0])
        text = ", ".join(f"{name} {ms:.2f}" for name, ms in cost.items())
        console.print(
            f"γ={gamma}, batch {batches[0]}, ms: {text}; predicted speed-up {predicted(frames[0], cost, gamma):.2f}"
        )
    if OUTPUT.value:
        files.write_text(OUTPUT.value, pd.concat(frames).to_csv(index=False))
    return 0


if __name__ == "__main__":
    cli.run(main)
