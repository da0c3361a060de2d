"""What a real TensorBoard server shows of real runs."""

import json
import re
import subprocess
import sys
import urllib.request
from contextlib import contextmanager

import pytest

from tunelab.loggers import TensorBoard

pytestmark = pytest.mark.server


@contextmanager
def tensorboard(folder):
    """The address of a TensorBoard on a folder."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            for line in server.stdout:
                if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                    yield found[0]
                    break
            else:
                pytest.fail("TensorBoard ended without serving")
        finally:
            server.terminate()


def post(address, question):
    request = urllib.request.Request(address, json.dumps(question).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def test_the_row_of_a_resumed_run_has_its_new_knobs(tmp_path):
    for part, epochs in enumerate((2, 4)):
        logger = TensorBoard(str(tmp_path / "run"))
        if part:
            logger.resume_from(part)
        logger.log_knobs({"epochs": epochs})
        logger.log_metrics({"best/val/loss": 1.0 / epochs}, part + 1)
        logger.close()
    with tensorboard(tmp_path) as address:
        hparams = f"{address}/experiment/defaultExperimentId/data/plugin/hparams"
        allowed = ["STATUS_SUCCESS", "STATUS_RUNNING", "STATUS_UNKNOWN"]
        question = {"experimentName": "", "allowedStatuses": allowed, "startIndex": 0, "sliceSize": 9}
        (group,) = post(f"{hparams}/session_groups", question)["sessionGroups"]
        assert group["hparams"] == {"epochs": 4}


def test_hparams_and_scalars_of_a_folder_of_different_runs_are_served_with_each_real_objective(fit):
    one, first = fit("data=breast_cancer", "size=tiny", "epochs=2", "optimizer=momentum")
    two, second = fit("data=breast_cancer", "size=tiny", "epochs=3", "regularization=[l2]", "dropout=0.1")
    results = {f"{first.name}/tensorboard": one, f"{second.name}/tensorboard": two}
    with tensorboard(first.parent) as address:
        hparams = f"{address}/experiment/defaultExperimentId/data/plugin/hparams"
        experiment = post(f"{hparams}/experiment", {"experimentName": "", "includeMetrics": True})
        columns = {info["name"] for info in experiment["hparamInfos"]}
        assert {"optimizer.momentum", "regularization.l2.strength", "optimizer", "lr", "dropout"} <= columns
        question = {
            "experimentName": "",
            "allowedStatuses": ["STATUS_SUCCESS", "STATUS_RUNNING", "STATUS_UNKNOWN"],
            "colParams": [{"metric": {"group": "", "tag": "best/val/accuracy"}}],
            "startIndex": 0,
            "sliceSize": 100,
        }
        shown = {
            session["name"]: {value["name"]["tag"]: value["value"] for value in session["metricValues"]}
            for group in post(f"{hparams}/session_groups", question)["sessionGroups"]
            for session in group["sessions"]
        }
        assert set(shown) == set(results)
        for name, result in results.items():
            assert shown[name]["best/val/accuracy"] == pytest.approx(result["objective"]["best"], rel=1e-6)
            with urllib.request.urlopen(f"{address}/data/plugin/scalars/tags", timeout=300) as answer:
                tags = set(json.load(answer)[name])
            assert {"train/loss", "val/loss", "val/accuracy", "lr", "gradients/norm", "test/accuracy"} <= tags
