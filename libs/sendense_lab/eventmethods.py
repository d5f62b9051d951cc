"""Asking vCenter for events: QueryEvents, and collectors that read page by page."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from sendense_lab import eventview
from sendense_lab.call import Call
from sendense_lab.lab import Lab

MOST_EVENTS = 1000
"""In one answer, as vCenter's limit."""
MOST_COLLECTORS = 32


@dataclass
class _Collector:
    events: list[Any]
    position: int = 0


class EventMethods:
    """Methods of EventManager and EventHistoryCollector."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._lock = threading.Lock()
        self._collectors: dict[str, _Collector] = {}
        self._numbers = itertools.count(1)

    def handlers(self) -> dict[str, Callable[[Call], Any]]:
        """Returns the methods by their wsdl names."""
        return {
            "QueryEvents": self.query_events,
            "CreateCollectorForEvents": self.create_collector,
            "ReadNextEvents": self.read_next,
            "RewindCollector": self.rewind,
            "DestroyCollector": self.destroy,
        }

    def query_events(self, call: Call) -> list[Any]:
        """QueryEvents, oldest first."""
        spec = call.argument("filter")
        return self._selected(spec)[-min(spec.maxCount or MOST_EVENTS, MOST_EVENTS) :]

    def create_collector(self, call: Call) -> Any:
        """CreateCollectorForEvents."""
        with self._lock:
            if len(self._collectors) >= MOST_COLLECTORS:
                raise vim.fault.InvalidState(msg="There are too many event collectors")
            moref = f"event-collector-{next(self._numbers)}"
            self._collectors[moref] = _Collector(self._selected(call.argument("filter")))
            return vim.event.EventHistoryCollector(moref)

    def read_next(self, call: Call) -> list[Any]:
        """ReadNextEvents: from the beginning, page by page; empty at the end."""
        with self._lock:
            collector = self._collector(call)
            start = collector.position
            collector.position = min(start + min(call.argument("maxCount"), MOST_EVENTS), len(collector.events))
            return collector.events[start : collector.position]

    def rewind(self, call: Call) -> None:
        """RewindCollector."""
        with self._lock:
            self._collector(call).position = 0

    def destroy(self, call: Call) -> None:
        """DestroyCollector."""
        with self._lock:
            self._collector(call)
            del self._collectors[call.moref]

    def _collector(self, call: Call) -> _Collector:
        found = self._collectors.get(call.moref)
        if found is None:
            raise call.gone()
        return found

    def _selected(self, spec: Any) -> list[Any]:
        return [eventview.event_object(event) for event in self._lab.events.all() if eventview.selects(spec, event)]
