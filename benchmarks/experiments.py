"""Every experiment over several seeds, beside plain scikit-learn on the same split: what the files' first lines say.

python benchmarks/experiments.py [--seeds 8] [--only digits_mlp ...]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from omegaconf import DictConfig, open_dict
from sklearn.base import BaseEstimator
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge

from tunelab import conf_folder
from tunelab.fitting import build
from tunelab.record import Start
from tunelab.run import train

CLASSIFIERS: dict[str, Callable[[int], BaseEstimator]] = {
    "always the most frequent class": lambda seed: DummyClassifier(),
    "LogisticRegression": lambda seed: LogisticRegression(max_iter=5000),
    "RandomForest": lambda seed: RandomForestClassifier(random_state=seed),
}
REGRESSORS: dict[str, Callable[[int], BaseEstimator]] = {
    "always the mean": lambda seed: DummyRegressor(),
    "Ridge": lambda seed: Ridge(),
    "RandomForest": lambda seed: RandomForestRegressor(random_state=seed),
}


def recipe(name: str, seed: int) -> DictConfig:
    """The config of an experiment, as the command line would make it, on one thread."""
    typed = [f"experiment={name}", f"seed={seed}", "name=experiment", "threads=1", "trainer.enable_progress_bar=false"]
    with initialize_config_dir(str(conf_folder()), job_name="train"):
        return compose("train", overrides=[*typed, "logger=[]", "callbacks=[checkpoint]"])


def run(name: str, seed: int) -> tuple[dict[str, float], float]:
    """The test scores of a run, and its training time in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        result = train(recipe(name, seed), Path(folder), Start("", [], {}))
    scores: dict[str, float] = result["test"]
    return scores, float(result["seconds"])


def flat(part: tuple[Any, torch.Tensor]) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Examples as rows, shape (examples, values), and their targets."""
    return part[0].flatten(1).numpy(), part[1].numpy()


def baselines(name: str, seeds: int) -> dict[str, list[float]]:
    """The test score of each scikit-learn model, over seeds, on the experiment's own normalized split."""
    cfg = recipe(name, 0)
    with open_dict(cfg):
        cfg.threads = 1
    data = build(cfg.data)
    data.setup("fit")
    (inputs, targets), (test_inputs, test_targets) = flat(data.parts["train"]), flat(data.parts["test"])
    scores: dict[str, list[float]] = {}
    for label, make in (CLASSIFIERS if data.spec.class_names else REGRESSORS).items():
        for seed in range(seeds):
            guesses = make(seed).fit(inputs, targets).predict(test_inputs)
            score = (
                float((guesses == test_targets).mean())
                if data.spec.class_names
                else float(np.sqrt(np.square(guesses - test_targets).mean()) * data.spec.target_std)
            )
            scores.setdefault(label, []).append(score)
    return scores


def spread(values: list[float]) -> str:
    """Mean and standard deviation, in the digits that the files show."""
    digits = 3 if max(values) <= 1 else 2
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def main() -> None:
    """Prints two lines an experiment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--only", nargs="*", default=sorted(p.stem for p in (conf_folder() / "experiment").glob("*")))
    arguments = parser.parse_args()
    for name in arguments.only:
        runs = [run(name, seed) for seed in range(arguments.seeds)]
        metric = "test/accuracy" if "test/accuracy" in runs[0][0] else "test/rmse"
        seconds = statistics.median(time for _, time in runs)
        print(f"{name}: {seconds:.1f} s of training on one core; {metric} {spread([s[metric] for s, _ in runs])}")
        for label, values in baselines(name, arguments.seeds).items():
            print(f"    {label} {spread(values)}", flush=True)


if __name__ == "__main__":
    main()
