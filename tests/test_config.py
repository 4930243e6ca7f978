"""Configs: what is refused, and how it is said."""

import importlib
import pathlib

import pytest

from configs import quickstart, smoke
from jaxdiv.runs import config as run_config
from jaxdiv.runs.specs import RunSpec

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"

NAN = float("nan")
OF_STUDIES = ("causes", "sweep")  # keys that a study takes out of its config before it is a run's


def changed(key, value):
    config = smoke.get_config()
    config.update_from_flattened_dict({key: value})
    return config.to_dict()


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.py")))
def test_every_config_passes_its_own_check(name):
    config = importlib.import_module(f"configs.{name}").get_config().to_dict()
    if name == "smollm2":
        config["teacher"].update({"width": 576, "depth": 30})  # which the model's file decides
    run_config.check({key: value for key, value in config.items() if key not in OF_STUDIES})


DECAY = "teacher.optimizer.beta2"
RATE, RATES = "teacher.optimizer.learning_rate", "student.learning_rates"
# (key, value, message)
REFUSED = [
    ("losses", "ce,klx", r"`config.losses`: unknown loss `klx`; did you mean `kl`\?"),
    ("losses", "ce,ce", "`config.losses`"),
    ("losses", " ", "`config.losses` must be text that is not empty"),
    ("seeds", 0, "`config.seeds` must be a whole number of at least 1, got 0"),
    ("seed", -1, "`config.seed`"),
    ("temperature", NAN, "`config.temperature` must be a finite number above 0, got nan"),
    ("dtype", "float16", "`config.dtype` must be one of float32, bfloat16, got 'float16'"),
    ("data.vocabulary", 256, "`config.data.vocabulary`"),
    (RATE, NAN, f"`config.{RATE}`"),
    (DECAY, 1.0, f"`config.{DECAY}`"),
    ("teacher.optimizer.warmup_steps", 20, "must be below `config.teacher.steps` = 20, got 20"),
    ("teacher.heads", 3, "config.teacher: `heads` must divide the width 32"),
    ("teacher.padded_vocabulary", 511, "0 or at least `config.data.vocabulary` = 512, got 511"),
    ("teacher.padded_vocabulary", -1, "vocabulary` must be a whole number in 0..16777216"),
    ("student.exit_layer", 3, "must be at most `config.teacher.depth` = 2, got 3"),
    (RATES, "tv: 1e-2; ce", "'ce' must be LOSS: RATE of another one of the run's losses, ce, kl"),
    (RATES, "kl: 1; kl: 2", "'kl: 2' must be LOSS: RATE of another one"),
    (RATES, "kl: fast", "of kl must be a finite number above 0, got nan"),
    ("student.vocabulary", 1, r"must be 0 for all tokens, or in 2\.\.512, .*, got 1"),
    ("student.vocabulary", 513, r"or in 2\.\.512, `config.data.vocabulary`, got 513"),
    ("student.kind", "medusa", "`config.student.kind` must be one of kangaroo, decoder"),
    ("evaluation.temperatures", (-1.0,), "`config.evaluation.temperatures`"),
    ("evaluation.temperatures", (1.0, 1.0), "`config.evaluation.temperatures`"),
    ("evaluation.contexts", "corpus,dreams", "`config.evaluation.contexts`"),
    ("evaluation.rules", "sampling,lookup", "rules` must be different ones of sampling"),
    ("evaluation.document_tokens", 4096, "in 2..2048, got 4096"),
    ("evaluation.prompt_tokens", 64, "must be below `config.evaluation.document_tokens` = 64"),
]


@pytest.mark.parametrize(("key", "value", "message"), REFUSED)
def test_wrong_values_are_named_in_one_line(key, value, message):
    with pytest.raises(ValueError, match=message) as error:
        run_config.check(changed(key, value))
    assert "\n" not in str(error.value)


def test_missing_and_undeclared_keys_are_refused():
    config = quickstart.get_config().to_dict()
    config["teacher"]["dropout"] = 0.1
    with pytest.raises(ValueError, match=r"`config.teacher.dropout` is not a key"):
        run_config.check(config)
    del config["teacher"]["dropout"], config["log"]["every"]
    with pytest.raises(ValueError, match=r"`config.log.every` is missing"):
        run_config.check(config)


def test_the_page_of_keys_is_up_to_date():
    page = (CONFIGS.parent / "docs" / "config.md").read_text(encoding="utf-8")
    assert page == run_config.page(), "python -m jaxdiv.runs.config > docs/config.md"


def test_specs_hold_what_the_config_says_and_compare_by_results():
    run = RunSpec.from_config(smoke.get_config().to_dict())
    assert [loss.text for loss in run.losses] == ["ce", "kl", "tv"]
    assert (run.seeds, run.teacher.last_step, run.on_policy) == ((0, 1), 20, None)
    assert run.student_stage.members == ("ce", "kl", "tv")
    assert run.evaluation.contexts == ("corpus", "generated", "generated_greedy")
    assert RunSpec.from_config(changed("checkpoint.every", 7)) == run
    assert RunSpec.from_config(changed("data.directory", "elsewhere")) == run
    assert RunSpec.from_config(changed("seed", 1)) != run
    adopted = RunSpec.from_config(changed("teacher.checkpoint", "runs/other"))
    assert adopted.teacher.last_step == 0
    written = RunSpec.from_config(changed("data.context", "teacher")).on_policy
    assert (written.writer, written.rows, written.prompt_tokens) == ("teacher", 4, 8)


def test_learning_rates_of_single_losses():
    config = changed("student.learning_rates", "jsd(beta=0.3): 1e-2;kl: 2")
    config["losses"] = "ce,jsd(beta=0.3),kl"
    stage = RunSpec.from_config(config).student_stage
    default = config["student"]["optimizer"]["learning_rate"]
    assert [optimizer.learning_rate for optimizer in stage.optimizers] == [default, 1e-2, 2.0]
