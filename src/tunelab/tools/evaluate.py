"""Score a finished run's checkpoint again: run=<folder>"""

import logging

from omegaconf import DictConfig

from tunelab.config import one_of, required
from tunelab.folder import CHECKPOINTS, RunFolder

log = logging.getLogger("tunelab")


def check(cfg: DictConfig, user_keys: list[str]) -> None:
    required(cfg, "run")
    one_of(cfg, "checkpoint", CHECKPOINTS)
    one_of(cfg, "part", ["test", "val"])
    one_of(cfg, "changed", ["refuse", "unseen", "ignore"])
    RunFolder.find(cfg.run, "run").checkpoint(cfg.checkpoint)


def run(cfg: DictConfig) -> None:
    from tunelab.predictor import evaluate

    result = RunFolder.find(cfg.run, "run").result
    if cfg.checkpoint == "best" and result.get("validations") == 0:
        log.warning("This run had no validation: its best.ckpt is its last state.")
    reported = result.get("test") or {}
    paths = {key: path for key, path in cfg.data.items() if path}
    scores = evaluate(cfg.run, cfg.checkpoint, cfg.part, changed=cfg.changed, paths=paths)
    for name, value in scores.items():
        told = f"   (the run reported {reported[name]:.4f})" if name in reported else ""
        print(f"{name:16} {value:.4f}{told}")
