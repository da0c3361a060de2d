"""The project trains: python -m pytest"""

import json
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def test_one_epoch_of_the_first_experiment_beats_guessing(tmp_path: Path) -> None:
    words = ["experiment=first", "epochs=1", f"hydra.run.dir={tmp_path}/run"]
    subprocess.run([sys.executable, "train.py", *words], cwd=PROJECT, check=True)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test"]["test/accuracy"] > 0.55
