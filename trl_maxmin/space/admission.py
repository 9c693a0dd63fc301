# SPDX-License-Identifier: Apache-2.0
"""Who may wait: one visit cannot fill the queue, and those who compare do not keep others from voting."""

from __future__ import annotations

from typing import Any


_OF_A_VISIT = 3  # requests of one kind that a visit may have waiting, besides the one that runs


def admit_fairly(app: Any, most: int) -> None:
    """Bound the queue by what waits for the same thing and by visit; Gradio's own bound counts all together.

    Visits name themselves, so this keeps visitors from standing in each other's way and not an attacker from filling
    the queue of comparisons; votes wait in a queue of their own.

    Args:
        app (`gr.Blocks`): with its queue set up, without a `max_size`.
        most (`int`): requests that may wait for the same thing, such as the models; three of them of one visit, and
            callers without a visit count as one.
    """
    queue = app._queue
    push = queue.push

    async def admit(body: Any, request: Any, username: str | None) -> Any:
        function = app.fns.get(body.fn_index)
        lane = queue.event_queue_per_concurrency_id.get(getattr(function, "concurrency_id", None))
        waiting = list(lane.queue) if lane is not None else []
        own = sum(event.session_hash == (body.session_hash or event._id) for event in waiting)
        if own >= _OF_A_VISIT:
            return False, f"You have {own} requests waiting already. Please wait for their results.", "queue_full"
        if len(waiting) >= most:
            return False, "Many people are asking at the moment. Please try again in a minute.", "queue_full"
        return await push(body=body, request=request, username=username)

    queue.push = admit
