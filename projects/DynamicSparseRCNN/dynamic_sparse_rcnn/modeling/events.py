"""detectron2's event storage, where there is one: a model may also run outside of a training loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor


def current_event_storage() -> EventStorage | None:
    """The storage of the running training loop, or None."""
    try:
        return get_event_storage()
    except AssertionError:  # detectron2's way to say that no training loop is running
        return None


class ScalarLog:
    """Logs scalars to the running loop's ``EventStorage`` without waiting for the device.

    What a CUDA device computed is logged one call late, when its copy has arrived.
    """

    def __init__(self) -> None:
        self._pending: tuple[list[str], Tensor, torch.cuda.Event] | None = None

    def put(self, scalars: Mapping[str, Tensor]) -> None:
        """Logs tensors of one element each by their names; nothing, outside of a training loop."""
        storage = current_event_storage()
        if storage is None:
            return
        values = torch.stack([value.detach().float() for value in scalars.values()])
        if not values.is_cuda:
            storage.put_scalars(**dict(zip(scalars, values.tolist(), strict=True)))
            return
        if self._pending is not None:
            names, arrived, event = self._pending
            event.synchronize()  # recorded a step ago: there is nothing to wait for
            storage.put_scalars(**dict(zip(names, arrived.tolist(), strict=True)))
        copy, event = values.to("cpu", non_blocking=True), torch.cuda.Event()
        event.record(torch.cuda.current_stream(values.device))
        self._pending = list(scalars), copy, event

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the model does not log what the original computed; events cannot be copied.
        return {"_pending": None}
