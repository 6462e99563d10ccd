"""detectron2's event storage, where there is one: a model may also run outside of a training loop."""

from __future__ import annotations

from detectron2.utils.events import EventStorage, get_event_storage


def current_event_storage() -> EventStorage | None:
    """The storage of the running training loop, or None."""
    try:
        return get_event_storage()
    except AssertionError:  # detectron2's way to say that no training loop is running
        return None
