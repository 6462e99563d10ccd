"""Access to detectron2's event storage, which exists only inside a training loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor


def current_event_storage() -> EventStorage | None:
    """Returns the storage of the running training loop, or None outside of one."""
    try:
        return get_event_storage()
    except AssertionError:  # raised by detectron2 outside of a training loop
        return None


class ScalarLog:
    """Logs scalars to the training loop's ``EventStorage`` without synchronizing with the device.

    Scalars on a CUDA device are copied asynchronously and logged one call later.
    """

    def __init__(self) -> None:
        self._pending: tuple[list[str], Tensor, torch.cuda.Event] | None = None

    def put(self, scalars: Mapping[str, Tensor]) -> None:
        """Logs one-element tensors by name. Does nothing outside of a training loop."""
        storage = current_event_storage()
        if storage is None:
            return
        values = torch.stack([value.detach().float() for value in scalars.values()])
        if not values.is_cuda:
            storage.put_scalars(**dict(zip(scalars, values.tolist(), strict=True)))
            return
        if self._pending is not None:
            names, arrived, event = self._pending
            event.synchronize()  # recorded in the previous step, so it is done by now
            storage.put_scalars(**dict(zip(names, arrived.tolist(), strict=True)))
        copy, event = values.to("cpu", non_blocking=True), torch.cuda.Event()
        event.record(torch.cuda.current_stream(values.device))
        self._pending = list(scalars), copy, event

    def __getstate__(self) -> dict[str, Any]:
        # CUDA events cannot be copied or pickled; and a copied model must not log the original's scalars.
        return {"_pending": None}
