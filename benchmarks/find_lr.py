"""The lr that the range test finds, against the best of a grid, beside Lightning's own lr_find. One thread.

    python benchmarks/find_lr.py [--seeds 0 5] [--optimizers sgd adamw] [--models mlp cnn] [--kept grid.jsonl]

The truth for an optimizer, a model and a seed: 19 lrs from 1e-5 to 10, three to a tenfold, each trained for ten epochs
of digits with the default schedule; the best is the one whose val/loss is lowest at the end. Beside it stands the
nearest lr whose val/loss is within one standard deviation over seeds of that, as an optimum may be flat. The runs of
the grid are kept in a file and go on where they were left: ten minutes of one core for five seeds, the cnn at size
tiny. Ours is the answer of one seed with the numbers of conf/find_lr.yaml; Lightning's is Tuner.lr_find as it is
shipped, on the same recipe, task and data. Each is asked with the seed whose best it must find.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.tuner.tuning import Tuner
from omegaconf import DictConfig

from tunelab.composing import composed
from tunelab.fitting import parts
from tunelab.prepare import complete, prepare_process
from tunelab.tuning.bare import with_value
from tunelab.tuning.fits import fit
from tunelab.tuning.lr_range import Plan, find_lr

OPTIMIZERS = ("sgd", "adamw", "rmsprop", "muon")
SIZES = {"mlp": "base", "cnn": "tiny"}
LRS = [float(f"{10 ** (k / 3):.3g}") for k in range(-15, 4)]
CLOSE = 3.0

Case = tuple[str, str, int]
"""Optimizer, model and seed."""


def recipe(case: Case) -> DictConfig:
    """What is trained in a case."""
    optimizer, model, seed = case
    quiet = ("threads=1", "callbacks=[]", "logger=[]", "trainer.enable_progress_bar=false")
    overrides = (f"optimizer={optimizer}", f"model={model}", f"size={SIZES[model]}", f"seed={seed}", "epochs=10")
    return composed(*overrides, *quiet).cfg


def grid(cases: list[Case], kept: Path) -> dict[Case, dict[float, float]]:
    """The val/loss of every lr in every case, inf where it diverges; what is in the file is not trained again."""
    found: dict[Case, dict[float, float]] = defaultdict(dict)
    for line in kept.read_text(encoding="utf-8").splitlines() if kept.is_file() else []:
        row = json.loads(line)
        value = row["val_loss"] if row["val_loss"] is not None else math.inf
        found[row["optimizer"], row["model"], row["seed"]][row["lr"]] = value
    for lr in LRS:
        for case in cases:
            if lr in found[case]:
                continue
            loss = float(fit(with_value(recipe(case), "lr", lr), []).callback_metrics["val/loss"])
            found[case][lr] = loss if math.isfinite(loss) else math.inf
            row = dict(zip(("optimizer", "model", "seed"), case, strict=True))
            row |= {"lr": lr, "val_loss": loss if math.isfinite(loss) else None}
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    return {case: found[case] for case in cases}


def ours(case: Case) -> float:
    """What one seed speaks for."""
    return find_lr(recipe(case), Plan(seeds=1)).rates[0]


def theirs(case: Case) -> float:
    """What Lightning suggests, which is NaN where it finds nothing."""
    cfg = complete(recipe(case))
    prepare_process(cfg)
    data, task = parts(cfg)
    made: Any = task
    make = made.make_optimizer
    made.hparams.lr = cfg.lr  # where it looks for the lr, and leaves another

    def optimizer() -> Any:
        decay = make.keywords.get("weight_decay", 0.0)
        return make(made.make_groups(made.model, weight_decay=decay, lr=made.hparams.lr), lr=made.hparams.lr)

    made.configure_optimizers = optimizer  # without a schedule, which its search would undo
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=cfg.epochs, accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=folder,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        )  # fmt: skip
        found = Tuner(trainer).lr_find(task, datamodule=data, attr_name="lr")
    suggestion = found.suggestion() if found is not None else None
    return float(suggestion) if suggestion is not None else math.nan


def apart(one: float, other: float) -> float:
    """How many times the one is larger, whichever it is; NaN is far from all."""
    return max(one / other, other / one) if math.isfinite(one) else math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description="The lr of a range test against the best of a grid.")
    parser.add_argument("--seeds", type=int, nargs=2, default=[0, 5], help="the first, and the one behind the last")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--models", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--kept", type=Path, default=Path("outputs/find_lr_grid.jsonl"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    arguments.kept.parent.mkdir(parents=True, exist_ok=True)
    seeds = range(*arguments.seeds)
    cases = [(o, m, s) for s in seeds for o in arguments.optimizers for m in arguments.models]
    truth = grid(cases, arguments.kept)
    answers = {case: (ours(case), theirs(case)) for case in cases}
    print("| optimizer | model | best of the grid | ours | spread | Lightning's | spread |")
    print("| --- | --- | --- | --- | ---: | --- | ---: |")
    hits: dict[str, list[bool]] = defaultdict(list)
    for optimizer in arguments.optimizers:
        for model in arguments.models:
            group = [(optimizer, model, seed) for seed in seeds]
            best = {case: min(truth[case], key=truth[case].__getitem__) for case in group}
            deviation = statistics.stdev(truth[case][best[case]] for case in group) if len(group) > 1 else 0.0
            cells = [", ".join(f"{best[case]:g}" for case in group)]
            for who, name in enumerate(("ours", "Lightning's")):
                rates = [answers[case][who] for case in group]
                hits[name] += [apart(rate, best[case]) <= CLOSE for rate, case in zip(rates, group, strict=True)]
                for rate, case in zip(rates, group, strict=True):
                    good = [lr for lr, loss in truth[case].items() if loss <= truth[case][best[case]] + deviation]
                    hits[f"{name}, of the flat optimum"].append(min(apart(rate, lr) for lr in good) <= CLOSE)
                cells += [", ".join(f"{rate:.2g}" for rate in rates), f"{max(rates) / min(rates):.2f} ×"]
            print(f"| {optimizer} | {model} | {' | '.join(cells)} |", flush=True)
    print()
    for name, close in hits.items():
        print(f"{name}: within {CLOSE:g} × in {sum(close)} of {len(close)} cases")


if __name__ == "__main__":
    main()
