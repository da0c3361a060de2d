"""What a run notes of its data and its first step is what an independent look at them finds."""

from __future__ import annotations

import csv
import itertools
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.strategies import Strategy
from omegaconf import OmegaConf
from test_command import typed

from tunelab.callbacks import Facts, facts
from tunelab.fitting import build
from tunelab.tasks import SupervisedTask

BARE = ("size=tiny", "epochs=1", "logger=[]", "callbacks=[]", "test=false")


def noted(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    return found


@pytest.mark.parametrize("data", ["digits", "iris"])
def test_examples_classes_and_their_order_are_those_of_the_data(fit, compose, data: str) -> None:
    found = noted(fit(f"data={data}", *BARE)[1])
    module = build(compose(f"data={data}").data)
    module.setup("fit")
    (inputs, labels), (val_inputs, _) = module.parts["train"], module.parts["val"]
    counts = np.array(list(Counter(labels.tolist()).values()))
    shares = counts / counts.sum()
    assert (found["train_examples"], found["val_examples"]) == (len(labels), len(val_inputs))
    assert sorted(found["class_counts"]) == sorted(counts)
    assert found["classes"] == len(counts)
    assert found["input_values"] == inputs[0].numel()
    assert found["majority_share"] == pytest.approx(shares.max())
    assert found["chance_loss"] == pytest.approx(-np.sum(shares * np.log(shares)))
    met = [label for _, labels in module.train_dataloader() for label in labels.tolist()]
    assert found["label_runs"] == pytest.approx(np.mean([a == b for a, b in itertools.pairwise(met)]))
    rows = [row.numpy().tobytes() for row in inputs]
    assert found["val_in_train"] == np.mean([row.numpy().tobytes() in rows for row in val_inputs])
    assert found["duplicate_train"] == np.mean([rows.count(row) > 1 for row in rows])


def test_the_first_step_is_the_first_that_is_written(fit) -> None:
    logs = ("logger=[csv]", "callbacks=[gradients]", "trainer.log_every_n_steps=1")
    _, folder = fit("data=iris", *BARE[:2], *logs, "clipping=norm")
    with (folder / "metrics.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    found = noted(folder)
    assert found["first_loss"] == pytest.approx(float(first["train/loss"]))
    assert found["first_gradient_norms"] == {
        layer: pytest.approx(float(first[f"layers/gradient_norm/{layer}"])) for layer in ("hidden1", "head")
    }
    assert (found["steps_per_epoch"], found["batch_size"], found["frozen_layers"]) == (2, 64, [])


def test_rows_of_a_file_that_validate_and_train_are_counted(fit, tmp_path: Path) -> None:
    half = pd.DataFrame({"x": np.arange(60) % 53, "y": np.arange(60) / 7, "kind": list("ab") * 30})
    pd.concat([half, half.assign(kind=half.kind.where(half.index >= 12, "c"))]).to_csv(tmp_path / "t.csv", index=False)
    _, folder = fit("data=csv", f"data.path='{tmp_path / 't.csv'}'", "data.target=kind", "batch_size=16", *BARE)
    module = build(OmegaConf.load(folder / "config.yaml").data)
    module.setup("fit")
    (inputs, labels), (val_inputs, _) = module.parts["train"], module.parts["val"]
    rows = [tuple(row) for row in inputs.tolist()]
    of_row = {row: {label for r, label in zip(rows, labels.tolist(), strict=True) if r == row} for row in rows}
    found = noted(folder)
    assert found["val_in_train"] == np.mean([tuple(row) in rows for row in val_inputs.tolist()]) > 0.5
    assert found["duplicate_train"] == np.mean([rows.count(row) > 1 for row in rows]) > 0.5
    assert found["label_conflicts"] == np.mean([len(of_row[row]) > 1 for row in rows]) > 0
    assert found["distinct_train"] == len(of_row) / len(rows)
    of_pair = Counter(zip(rows, labels.tolist(), strict=True))
    most = {row: max(count for (other, _), count in of_pair.items() if other == row) for row in of_row}
    assert found["best_accuracy"] == sum(most.values()) / len(rows) < 1


def test_the_loss_of_a_constant_number_is_the_variance_of_a_standardised_target(fit) -> None:
    found = noted(fit("data=diabetes", *BARE)[1])
    assert found["chance_loss"] == pytest.approx(1.0, abs=1e-6)  # targets are standardised
    assert (found["classes"], found["class_counts"], found["label_runs"]) == (None, None, None)


def test_with_balanced_weights_a_constant_costs_as_much_as_with_as_many_of_each(fit) -> None:
    found = noted(fit("data=breast_cancer", "loss.class_weights=balanced", *BARE)[1])
    assert found["chance_loss"] == pytest.approx(np.log(2))


def test_a_hash_tells_rows_apart_and_no_more() -> None:
    rows = torch.randint(0, 3, (3000, 5), generator=torch.Generator().manual_seed(1)).float() / 16
    same = facts.hashes(rows)[:, None] == facts.hashes(rows)[None]
    assert np.array_equal(same, (rows[:, None] == rows[None]).all(dim=2).numpy())
    assert np.array_equal(facts.hashes(rows.double()), facts.hashes(rows.double().clone()))
    assert len(facts.hashes(torch.empty(0, 3, 8, 8))) == 0


def test_beyond_a_bound_rows_are_not_compared(monkeypatch: pytest.MonkeyPatch, fit) -> None:
    monkeypatch.setattr(facts, "MOST_BYTES", 100)
    found = noted(fit("data=iris", *BARE)[1])
    assert (found["val_in_train"], found["duplicate_train"], found["label_conflicts"]) == (None, None, None)
    assert found["train_examples"] == 120


def test_layers_that_no_step_moves_are_named(fit) -> None:
    _, folder = fit("data=iris", *BARE, 'parameter_groups.rules=[{match: "head.*", lr: 0.0}]')
    assert noted(folder)["frozen_layers"] == ["head"]


def test_no_step_waits_for_the_file_to_be_written(fit, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    monkeypatch.setattr(facts, "write_json", lambda path, found: written.append(trainers[-1].global_step))
    trainers: list[Any] = []
    start = Facts.on_train_start
    monkeypatch.setattr(
        Facts, "on_train_start", lambda self, trainer, task: (trainers.append(trainer), start(self, trainer, task))
    )
    fit("data=iris", "size=tiny", "epochs=2", "batch_size=16", "logger=[]", "callbacks=[]", "test=false")
    assert written == [8]  # of the first epoch's 8 steps


def test_a_run_that_ends_in_its_first_epoch_leaves_its_facts(
    fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SupervisedTask, "on_validation_epoch_start", stop)
    with pytest.raises(SystemExit):
        fit("data=iris", *BARE)
    assert noted(tmp_path / "run1")["first_loss"] > 0


def test_where_each_process_has_a_part_of_the_weights_its_size_and_gradients_are_not_noted(
    fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "FSDPStrategy", Strategy)  # as if the one at hand were it
    found = noted(fit("data=iris", *BARE)[1])
    assert (found["parameters"], found["first_gradient_norms"]) == (None, None)
    assert found["first_loss"] > 0


def test_a_resume_keeps_the_facts_and_a_run_that_had_none_gets_them_without_its_first_step(tmp_path: Path) -> None:
    run = ("data=iris", "size=tiny", "logger=[]", "test=false")
    assert typed(tmp_path, *run, "epochs=1", "hydra.run.dir=run").code == 0
    path = tmp_path / "run" / "facts.json"
    first = path.read_text()
    assert typed(tmp_path, "resume=run", "epochs=2").code == 0
    assert path.read_text() == first
    path.unlink()
    assert typed(tmp_path, "resume=run", "epochs=3").code == 0
    again, before = json.loads(path.read_text()), json.loads(first)
    assert (again.pop("first_loss"), again.pop("first_gradient_norms")) == (None, None)
    assert again.items() <= before.items()


def test_a_run_has_the_same_numbers_with_and_without_them(fit, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("data=iris", "size=tiny", "epochs=2", "logger=[csv]", "regularization=[dropout]", "test=false")
    _, noting = fit(*words)
    monkeypatch.setattr(Facts, "on_train_start", lambda *_: None)
    _, silent = fit(*words)
    assert not (silent / "facts.json").exists()
    assert (noting / "metrics.csv").read_bytes() == (silent / "metrics.csv").read_bytes()


def test_data_that_cannot_be_looked_at_does_not_end_a_run(
    fit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("no such thing")

    monkeypatch.setattr(facts, "of_data", fail)
    with caplog.at_level(logging.INFO, logger="tunelab"):
        result, folder = fit("data=iris", *BARE)
    assert result["status"] == "finished"
    assert "What this data is like is not noted: ValueError: no such thing" in caplog.messages
    assert not (folder / "facts.json").exists()
