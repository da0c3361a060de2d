"""Predictions for the rows of a csv or parquet file, or for images: run=<folder> input=<file or folder>"""

from pathlib import Path

from omegaconf import DictConfig

from tunelab.config import one_of, required
from tunelab.errors import ConfigError
from tunelab.folder import CHECKPOINTS, RunFolder
from tunelab.printing import reader_may_be_gone

SHOWN_ROWS = 5


def check(cfg: DictConfig, user_keys: list[str]) -> None:
    required(cfg, "run", "input")
    one_of(cfg, "checkpoint", CHECKPOINTS)
    RunFolder.find(cfg.run, "run").checkpoint(cfg.checkpoint)
    if not Path(cfg.input).exists():
        raise ConfigError(f"`input` must be a csv or parquet file, or images, got {cfg.input}, which does not exist.")
    if cfg.output and Path(cfg.output).resolve() == Path(cfg.input).resolve():
        raise ConfigError(f"`output` must be another file than input, got {cfg.output}. Name a new file, or none.")


def run(cfg: DictConfig) -> None:
    from tunelab.predictor import load, read_rows

    source = Path(cfg.input)
    predictor = load(cfg.run, cfg.checkpoint)
    if predictor.takes_images(source):
        predictions = predictor.predict_images(cfg.input)
    else:
        rows = read_rows(cfg.input, separator=cfg.separator, encoding=cfg.encoding, spec=predictor.spec)
        predictions = predictor.predict(rows)
    name = source.resolve().name if source.is_dir() else source.stem
    target = Path(cfg.output) if cfg.output else source.parent / f"{name}-predictions.csv"
    try:
        predictions.to_csv(target, index=False)
    except OSError as error:
        raise ConfigError(f"`output` must be a file that can be written, got {target} ({error.strerror}).") from None
    with reader_may_be_gone():
        print(predictions.head(SHOWN_ROWS).to_string(index=False))
        print(f"{len(predictions)} predictions in {target}")
