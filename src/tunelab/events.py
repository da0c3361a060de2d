"""An event file for TensorBoard, written at once: curves and a picture. No torch."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary


def write_events(folder: Path, summaries: Iterable[tuple[int, Summary]]) -> None:
    """Writes summaries into a new event file.

    Args:
        folder: Which is made.
        summaries: Each with its step.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder.mkdir(parents=True, exist_ok=True)
    now = time.time()
    with (folder / f"events.out.tfevents.{int(now)}.answer").open("wb") as file:
        records = RecordWriter(file)
        records.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        for step, summary in summaries:
            records.write(Event(wall_time=now, step=step, summary=summary).SerializeToString())


def scalar(name: str, value: float) -> Summary:
    """A point of a curve."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=name, simple_value=value)])


def picture(name: str, png: bytes, width: int, height: int) -> Summary:
    """An image, of this many pixels."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=name, image=image)])
