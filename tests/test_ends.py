"""What is announced of a run's length is what is trained, and a run without a validation says so."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig
from test_command import refused, typed

from tunelab.config import validate
from tunelab.errors import ConfigError
from tunelab.summary import rows

WORDS = ("data=iris", "size=tiny", "threads=1", "logger=[]", "callbacks=[checkpoint]")  # 120 examples train: 2 steps
NOT_MEASURED = "not measured: no validation; best.ckpt is the last state"


def test_a_run_that_max_steps_ends_is_announced_summed_up_and_resumed_by_its_steps(tmp_path: Path) -> None:
    outcome = typed(tmp_path, *WORDS, "+trainer.max_steps=5")
    assert " · 5 steps, 2 an epoch · " in outcome.err
    assert "There is no validation" not in outcome.err
    assert re.search(r"best val/accuracy .* of 3, ended by trainer.max_steps=5", outcome.out)
    result = json.loads((tmp_path / outcome.folder / "result.json").read_text())
    assert (result["steps"], result["validations"], result["ended_by"]) == (5, 2, "trainer.max_steps=5")
    for more in ((), ("epochs=60",)):
        said = refused(typed(tmp_path, f"resume={outcome.folder}", *more), 1)
        assert "`trainer.max_steps` must be more than the 5 that the run has behind it, got 5." in said
    resumed = typed(tmp_path, f"resume={outcome.folder}", "trainer.max_steps=8")
    assert "steps 6 to 8" in resumed.out, resumed.text
    assert " · 8 steps, 2 an epoch · " in resumed.err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("+trainer.max_steps=1",), "trainer.max_steps=1, and the first would be after step 2"),
        (("epochs=1", "trainer.check_val_every_n_epoch=4"), "trainer.check_val_every_n_epoch=4 in 1 epoch"),
        (("epochs=2", "trainer.limit_val_batches=0"), "trainer.limit_val_batches=0"),
        (("epochs=2", "data.val_fraction=0"), "the data has no validation part"),
    ],
)
def test_a_run_without_a_validation_says_so_at_its_start_and_end(
    tmp_path: Path, words: tuple[str, ...], why: str
) -> None:
    outcome = typed(tmp_path, *WORDS, *words)
    assert outcome.code == 0, outcome.text
    said = f"There is no validation ({why}): val/accuracy is not measured, and the last state is kept as the best."
    assert said in outcome.err
    assert NOT_MEASURED in outcome.out
    folder = tmp_path / outcome.folder
    result = json.loads((folder / "result.json").read_text())
    assert (result["validations"], result["objective"]["best"]) == (0, None)
    assert (folder / "checkpoints/best.ckpt").read_bytes() == (folder / "checkpoints/last.ckpt").read_bytes()
    if "limit_val_batches" in why:
        told = typed(tmp_path, f"run={outcome.folder}", script="scripts/evaluate.py")
        assert "This run had no validation: its best.ckpt is its last state." in told.err
        assert f"(the run reported {result['test']['test/accuracy']:.4f})" in told.out


def test_a_run_that_time_ends_says_so_and_goes_on_with_more_time(tmp_path: Path) -> None:
    outcome = typed(tmp_path, *WORDS, "+trainer.max_time='00:00:00:01'", "epochs=1000000")
    assert " · at most 00:00:00:01 of 1000000 epochs of 2 steps · " in outcome.err
    assert "ended by trainer.max_time=00:00:00:01" in " ".join(outcome.out.split())
    said = refused(typed(tmp_path, f"resume={outcome.folder}"), 1)
    assert "as trainer.max_time=00:00:00:01 had it. To go on, add trainer.max_time=<longer>." in said
    resumed = typed(tmp_path, f"resume={outcome.folder}", "trainer.max_time='00:00:00:02'")
    assert "ended by trainer.max_time=00:00:00:02" in " ".join(resumed.out.split()), resumed.text


def test_steps_are_optimizer_steps_where_batches_are_accumulated(tmp_path: Path) -> None:
    outcome = typed(tmp_path, *WORDS, "epochs=1", "batch_size=16", "trainer.accumulate_grad_batches=4")
    assert "1 epoch of 2 steps" in outcome.err
    assert ", 2 steps" in outcome.out


def test_a_result_of_before_is_summed_up_as_it_was() -> None:
    old = {
        "objective": {"metric": "val/loss", "best": 0.5, "epoch": 2},
        **{"test": None, "train_loss": None, "samples_per_second": None, "seconds": 1.0, "steps": 6},
        **{"epochs": 3, "epochs_asked": 9},
    }
    assert rows(old)[0] == ("best val/loss", "0.5000 in epoch 2 of 3, stopped early of 9 (optimistic)")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "trainer.check_val_every_n_epoch=50",
            "at most epochs, or there is no validation, got 50 with epochs=30",
        ),
        ("trainer.limit_train_batches=0", "`trainer.limit_train_batches` must be greater than 0, got 0."),
        ("+trainer.min_epochs=40", "`trainer.min_epochs` must be at most epochs, got 40 with epochs=30."),
        ("+trainer.max_steps=0", "`trainer.max_steps` must be a whole number of 1 or more, got 0."),
        ("+trainer.fast_dev_run=true", "`trainer.fast_dev_run` must be left out, .* Try debug=one_batch."),
        ("+trainer.overfit_batches=1", "`trainer.overfit_batches` must be left out, .* Try debug=overfit."),
        ("~trainer.max_epochs", "`trainer.max_epochs` must be given, or Lightning trains 1,000."),
    ],
)
def test_a_length_that_cannot_be_is_refused(compose: Callable[..., DictConfig], words: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate(compose(words))


def test_a_search_whose_trials_have_no_validation_ends_at_its_first(tmp_path: Path) -> None:
    outcome = typed(tmp_path, "-m", *WORDS, "epochs=1", "trainer.limit_val_batches=0", "lr=0.1,0.2,0.3")
    assert "`objective` must be measured in a search, got val/accuracy and no validation." in refused(outcome, 1)
