"""The teacher: trained on the next token, or taken from another run."""

from collections.abc import Mapping

import jax
import numpy as np

import jaxdiv
from jaxdiv import models, reductions
from jaxdiv.data import pipeline
from jaxdiv.training import corpus as run_corpus
from jaxdiv.training import loop
from jaxdiv.training.checkpoints import Checkpoints
from jaxdiv.training.corpus import Corpus
from jaxdiv.training.state import Model, initial_state, population, population_shapes
from jaxdiv.training.step import make_optimizer, make_step
from jaxdiv.training.workdir import Workdir

_SHAPE_KEYS = ("depth", "width", "heads", "kv_heads", "mlp_width", "rope_base")
QUALITY = "teacher, nats a UTF-8 byte on test documents"


def check_donor(config: Mapping, workdir: Workdir) -> None:
    """Raises ValueError if `config.teacher.checkpoint` is no finished teacher of this config's shape.

    A folder that holds the teacher already needs no donor any more.
    """
    path = config["teacher"]["checkpoint"]
    if not path or _adopted(workdir):
        return
    donor = Workdir(path).config()
    theirs, ours = donor["data"]["vocabulary"], config["data"]["vocabulary"]
    if theirs != ours:
        raise ValueError(
            f"`config.teacher.checkpoint`: the teacher of {path} has a vocabulary of {theirs}, "
            f"`config.data.vocabulary` is {ours}"
        )
    for key in _SHAPE_KEYS:
        if donor["teacher"][key] != config["teacher"][key]:
            raise ValueError(
                f"`config.teacher.{key}` is {config['teacher'][key]}, but the teacher of {path} "
                f"(`config.teacher.checkpoint`) has {donor['teacher'][key]}"
            )
    try:
        with Checkpoints(Workdir(path).teacher, read_only=True) as checkpoints:
            checkpoints.require(_last_step(donor))
    except FileNotFoundError as error:
        raise ValueError(f"`config.teacher.checkpoint`: {error}") from None


def prepare(config: Mapping, workdir: Workdir, corpus: Corpus) -> Model:
    """The teacher that the config asks for, restored from the run's own folder, where it is put first if need be."""
    if config["teacher"]["checkpoint"]:
        _adopt(config, workdir, corpus)
    else:
        _train(config, workdir, corpus)
    teacher = restore(config, workdir, corpus.tokenizer.vocab_size)
    if QUALITY not in workdir.facts():
        workdir.add_facts({QUALITY: round(nats_a_byte(config, corpus, teacher), 4)})
    return teacher


def restore(config: Mapping, workdir: Workdir, vocab_size: int) -> Model:
    """The trained teacher from the run's folder. Raises FileNotFoundError if its training did not end."""
    shapes = population_shapes(_build(config, vocab_size), 1)
    with Checkpoints(workdir.teacher, read_only=True) as checkpoints:
        restored, _ = checkpoints.restore({"params": (shapes.params,)}, step=_last_step(config))
    return shapes.with_params(restored["params"][0]).student(0)


def nats_a_byte(config: Mapping, corpus: Corpus, teacher: Model) -> float:
    """Nats a UTF-8 byte of the test documents' first tokens; ends of text count as 0 bytes."""
    windows = pipeline.evaluation_windows(
        corpus.splits["test"],
        sequence_length=config["data"]["sequence_length"],
        end_of_text=corpus.tokenizer.end_of_text,
    )

    @jax.jit
    def nats(params, inputs, labels, weights):
        values = jaxdiv.cross_entropy_data(teacher.with_params(params)(inputs).logits, labels)
        return reductions.token_sum(values, weights)[0]

    arrays = (windows.inputs, windows.labels, windows.weights)
    total = sum(
        float(nats(teacher.params, *block)) for block in pipeline.blocks(arrays, config["teacher"]["batch_size"])
    )
    return total / float((corpus.tokenizer.byte_lengths[windows.labels] * windows.weights).sum())


def _build(config, vocab_size):
    return lambda rngs: models.build_teacher({**config["teacher"], "dtype": config["dtype"]}, vocab_size, rngs)


def _adopted(workdir):
    if not workdir.teacher.exists():
        return False
    with Checkpoints(workdir.teacher, read_only=True) as checkpoints:
        return checkpoints.latest() is not None


def _last_step(config):
    """Of an adopted teacher, which takes no steps here, 0."""
    return 0 if config["teacher"]["checkpoint"] else config["teacher"]["steps"]


def _adopt(config, workdir, corpus):
    """Copies the donor's teacher, so that this folder alone holds all that decides its result."""
    donor = Workdir(config["teacher"]["checkpoint"])
    with Checkpoints(workdir.teacher) as checkpoints:
        if checkpoints.latest() is None:
            teacher = restore(donor.config(), donor, corpus.tokenizer.vocab_size)
            stacked = jax.tree.map(lambda x: x[None], teacher.params)
            checkpoints.save(_last_step(config), {"params": (stacked,)}, {"adopted from": str(donor.root)})


def _train(config, workdir, corpus):
    seeds = [config["seed"]]
    model = population(_build(config, corpus.tokenizer.vocab_size), seeds)
    optimizer = make_optimizer(config["teacher"]["optimizer"], config["teacher"]["steps"])
    held_out = run_corpus.validation_batch(config, corpus)

    @jax.jit
    def validation_loss(params):
        logits = model.with_params(params).student(0)(held_out["inputs"]).logits
        return reductions.token_mean(jaxdiv.cross_entropy_data(logits, held_out["labels"]), held_out["weights"])

    def report_dead(number, _):
        raise ValueError(
            f"the teacher's loss or gradient is not finite at step {number}; "
            f"lower `config.teacher.optimizer.learning_rate`"
        )

    loop.run_stage(
        config,
        workdir,
        stage="teacher",
        folder=workdir.teacher,
        names=("teacher",),
        seeds=seeds,
        state=initial_state(model, optimizer, losses=1),
        step=make_step(
            teach=lambda _, inputs: None,
            forward=lambda params, inputs, _: model.with_params(params)(inputs).logits,
            objectives=[lambda logits, _, batch: jaxdiv.cross_entropy_data(logits, batch["labels"])],
            optimizer=optimizer,
        ),
        teacher=None,
        batches=run_corpus.batches(config, "teacher", corpus),
        measure=lambda state: {"validation_loss": np.asarray(validation_loss(state.params[0])).reshape(1, 1)},
        report_dead=report_dead,
    )
