"""A trial's row in TensorBoard's HParams tab: what it varied, and how it ended. No torch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunelab.sweep.space import Value

STATE = "state"
"""The column that says how a trial ended: finished, pruned or failed."""

FILE = "events.out.tfevents.0.trial"
"""Read before the run's own files, whose names have the second in which they began: of a row that is there twice
TensorBoard takes the first."""


def write_row(folder: Path, values: Mapping[str, Value], state: str) -> None:
    """Writes the row of a trial that has ended, with all that its run wrote of itself, if it came so far.

    Args:
        folder: Of the trial.
        values: Of its knobs, which are all there is of a trial that failed before its first step.
        state: How it ended.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    path = folder / "tensorboard" / FILE
    if path.exists():
        return
    start = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
    for name, value in {**_written(path.parent), **values, STATE: state}.items():
        if isinstance(value, bool):
            start.hparams[name].bool_value = value
        elif isinstance(value, (int, float)):
            start.hparams[name].number_value = value
        elif value is not None:
            start.hparams[name].string_value = str(value)
    status = api_pb2.STATUS_FAILURE if state == "failed" else api_pb2.STATUS_SUCCESS
    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    rows = {
        metadata.SESSION_START_INFO_TAG: plugin_data_pb2.HParamsPluginData(session_start_info=start),
        metadata.SESSION_END_INFO_TAG: plugin_data_pb2.HParamsPluginData(session_end_info=end),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(".trial.aside")
    with aside.open("wb") as file:
        records = RecordWriter(file)
        records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        for tag, row in rows.items():
            summary = Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(row))
            records.write(Event(wall_time=time.time(), summary=Summary(value=[summary])).SerializeToString())
    aside.replace(path)


def _written(folder: Path) -> dict[str, Any]:
    """The row that a run wrote itself; empty if it did not come so far."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.hparams import metadata

    for path in sorted(folder.glob("events.out.tfevents.*")):
        for number, record in enumerate(RawEventFileLoader(str(path)).Load()):
            for value in Event.FromString(record).summary.value:
                if value.tag == metadata.SESSION_START_INFO_TAG:
                    info = metadata.parse_session_start_info_plugin_data(value.metadata.plugin_data.content)
                    return {name: getattr(each, each.WhichOneof("kind")) for name, each in info.hparams.items()}
            if number > 10:  # it stands at the beginning
                break
    return {}
