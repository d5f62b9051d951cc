"""Running coroutines together so that none of them is still at work when the whole has failed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

Result = TypeVar("Result")


async def all_or_nothing(coroutines: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Runs coroutines at once and returns their results in order.

    When one fails, or the caller is cancelled, the others are cancelled and have ended before its error is raised:
    what they made can then be undone.
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.shield(asyncio.wait(tasks))
