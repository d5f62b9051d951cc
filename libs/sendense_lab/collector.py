"""vCenter's property collector: which objects a filter selects, and the values of their properties.

Selection is generic: a traversal step reads a property that holds references and goes on from there, so any
traversal that the inventory's properties support works.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pyVmomi import VmomiSupport, vim, vmodl

from sendense_lab.inventory import Inventory
from sendense_lab.lab import Lab
from sendense_lab.soap import fingerprint, typed

query = vmodl.query.PropertyCollector
MAX_OBJECTS = 1000
_filter_numbers = itertools.count(1)


class Views:
    """Container views of one session."""

    def __init__(self) -> None:
        self.contents: dict[str, tuple[Any, list[Any], bool]] = {}
        self._made = 0

    def add(self, container: Any, types: list[Any], recursive: bool) -> str:
        """Makes a view; returns its managed object id."""
        self._made += 1
        moref = f"view-{self._made}"
        self.contents[moref] = (container, types, recursive)
        return moref


@dataclass
class Filter:
    """A filter that a client waits for updates of.

    Attributes:
        spec: vim's FilterSpec.
        seen: What was last reported: object id to (reference, property path to fingerprint).
    """

    spec: Any
    seen: dict[str, tuple[Any, dict[str, str]]] = field(default_factory=dict)


class Collector:
    """The property collector of one session."""

    def __init__(self, lab: Lab, inventory: Inventory, views: Views) -> None:
        self._lab = lab
        self._inventory = inventory
        self._views = views
        self._filters: dict[str, Filter] = {}
        self._version = 0
        self._rest: dict[str, list[Any]] = {}
        self._tokens_made = 0
        self.cancelled = False

    def retrieve(self, specs: list[Any], max_objects: int | None) -> Any:
        """Answers RetrievePropertiesEx; None when nothing is selected."""
        found = [content for spec in specs for content in self.contents(spec)]
        return self._page(found, max_objects)

    def proceed(self, token: str) -> Any:
        """Answers ContinueRetrievePropertiesEx.

        Raises:
            vmodl.fault.InvalidArgument: The token is unknown or was used.
        """
        rest = self._rest.pop(token, None)
        if rest is None:
            raise vmodl.fault.InvalidArgument(
                invalidProperty="token", msg="A specified parameter was not correct: token"
            )
        return self._page(rest, len(rest) if len(rest) < MAX_OBJECTS else MAX_OBJECTS)

    def _page(self, found: list[Any], max_objects: int | None) -> Any:
        if not found:
            return None
        limit = min(max_objects or MAX_OBJECTS, MAX_OBJECTS)
        result = query.RetrieveResult(objects=found[:limit])
        if len(found) > limit:
            self._tokens_made += 1
            result.token = str(self._tokens_made)
            self._rest[result.token] = found[limit:]
        return result

    def contents(self, spec: Any) -> list[Any]:
        """Returns an ObjectContent for each object that a filter selects."""
        found = []
        for ref in self._select(spec):
            values, missing = self._values(ref, spec.propSet)
            if values is not None:
                found.append(
                    query.ObjectContent(
                        obj=ref,
                        propSet=[vmodl.DynamicProperty(name=name, val=value) for name, value in values.items()],
                        missingSet=missing,
                    )
                )
        return found

    def _select(self, spec: Any) -> Iterator[Any]:
        done: set[str] = set()
        for start in spec.objectSet:
            if not self._inventory_has(start.obj):
                if spec.reportMissingObjectsInResults:
                    continue
                raise vmodl.fault.ManagedObjectNotFound(
                    obj=start.obj,
                    msg=f"The object {start.obj._GetMoId()} has already been deleted",  # noqa: SLF001
                )
            named = _named(start.selectSet)
            if not start.skip:
                yield from _once(done, start.obj)
            yield from self._traverse(start.obj, list(start.selectSet), named, done, set())

    def _traverse(
        self, ref: Any, steps: list[Any], named: dict[str, Any], done: set[str], visited: set[tuple[str, int]]
    ) -> Iterator[Any]:
        for step in steps:
            actual = step if isinstance(step, query.TraversalSpec) else named.get(step.name)
            if actual is None:
                raise vmodl.fault.InvalidArgument(invalidProperty="selectSet", msg=f"No selection named {step.name}")
            key = (ref._GetMoId(), id(actual))  # noqa: SLF001
            if not isinstance(ref, actual.type) or key in visited:
                continue
            visited.add(key)
            value = self._read(ref, actual.path)
            for child in value if isinstance(value, list) else [value] if value is not None else []:
                if not actual.skip:
                    yield from _once(done, child)
                yield from self._traverse(child, list(actual.selectSet), named, done, visited)

    def _inventory_has(self, ref: Any) -> bool:
        return ref._GetMoId() in self._views.contents or self._inventory.exists(ref)  # noqa: SLF001

    def _read(self, ref: Any, path: str) -> Any:
        """Reads a property path; None when something along it is not set."""
        first, *rest = path.split(".")
        try:
            info = ref._GetPropertyInfo(first)  # noqa: SLF001
        except AttributeError as err:
            raise _invalid_property(path) from err
        if isinstance(ref, vim.view.ContainerView):
            value = self._view(ref) if first == "view" else None
        else:
            value = self._inventory.get(ref, first)
        value = typed(value, info.type)
        for name in rest:
            if value is None:
                return None
            value = _member(value, name, path)
        return value

    def _view(self, ref: Any) -> list[Any]:
        container, types, recursive = self._views.contents[ref._GetMoId()]  # noqa: SLF001
        inside = (
            self._inventory.descendants(container) if recursive else self._inventory.get(container, "childEntity") or []
        )
        return [child for child in inside if not types or isinstance(child, tuple(types))]

    def read(self, ref: Any, name: str) -> Any:
        """Returns one first-level property (pyVmomi's `Fetch`)."""
        return self._read(ref, name)

    def _values(self, ref: Any, specs: list[Any]) -> tuple[dict[str, Any] | None, list[Any]]:
        """Returns path to value for an object, None when no PropertySpec is about its type."""
        fitting = [spec for spec in specs if isinstance(ref, spec.type)]
        if not fitting:
            return None, []
        values: dict[str, Any] = {}
        missing: list[Any] = []
        for spec in fitting:
            paths = self._all_properties(ref) if spec.all else list(spec.pathSet)
            for path in paths:
                value = self._read(ref, path)
                if value is not None:
                    values[path] = value
        return values, missing

    def _all_properties(self, ref: Any) -> list[str]:
        return ["view"] if isinstance(ref, vim.view.ContainerView) else self._inventory.known_properties(ref)

    def sibling(self) -> Collector:
        """Returns a new collector of the same session, with no filter."""
        return Collector(self._lab, self._inventory, self._views)

    def create_filter(self, spec: Any) -> str:
        """Starts watching; returns the filter's managed object id."""
        list(self._select(spec))  # a bad filter is refused at once
        moref = f"filter-{next(_filter_numbers)}"
        self._filters[moref] = Filter(spec)
        return moref

    def destroy_filter(self, moref: str) -> bool:
        """Stops watching; False when there is no such filter."""
        return self._filters.pop(moref, None) is not None

    def wait(self, version: str | None, max_wait: float | None) -> Any:
        """Answers WaitForUpdatesEx.

        Args:
            version: Of the last answer; empty for the first.
            max_wait: Seconds after which None is returned; None waits as long as the session lives, 0 not at all.

        Returns:
            An UpdateSet, or None when nothing changed in that time.

        Raises:
            vmodl.query.InvalidCollectorVersion: The version is not the last one given.
        """
        if version and version != str(self._version):
            raise vmodl.query.InvalidCollectorVersion(msg="The version is not known to this session")
        if not version:
            for watched in self._filters.values():
                watched.seen.clear()
        deadline = None if max_wait is None else time.monotonic() + max_wait
        while True:
            with self._lab.changed:
                updates = [update for update in map(self._update, list(self._filters.items())) if update]
                if updates:
                    self._version += 1
                    return query.UpdateSet(version=str(self._version), filterSet=updates, truncated=False)
                left = None if deadline is None else deadline - time.monotonic()
                if self.cancelled:
                    raise vmodl.fault.RequestCanceled(msg="The session was closed")
                if left is not None and left <= 0:
                    return None
                self._lab.changed.wait(left)

    def _update(self, entry: tuple[str, Filter]) -> Any:
        moref, watched = entry
        objects = []
        now: dict[str, tuple[Any, dict[str, str]]] = {}
        for ref in self._select_existing(watched):
            values, _ = self._values(ref, watched.spec.propSet)
            if values is None:
                continue
            key = ref._GetMoId()  # noqa: SLF001
            prints = {path: fingerprint(value) for path, value in values.items()}
            now[key] = (ref, prints)
            before = watched.seen.get(key, (ref, {}))[1]
            changes = [
                query.Change(name=path, op="assign", val=value)
                for path, value in values.items()
                if before.get(path) != prints[path]
            ]
            changes += [query.Change(name=path, op="assign") for path in before if path not in prints]
            if changes or key not in watched.seen:
                kind = "modify" if key in watched.seen else "enter"
                objects.append(query.ObjectUpdate(kind=kind, obj=ref, changeSet=changes))
        for key, (ref, _) in watched.seen.items():
            if key not in now:
                objects.append(query.ObjectUpdate(kind="leave", obj=ref))
        watched.seen = now
        return query.FilterUpdate(filter=query.Filter(moref), objectSet=objects) if objects else None

    def _select_existing(self, watched: Filter) -> list[Any]:
        try:
            return list(self._select(watched.spec))
        except vmodl.fault.ManagedObjectNotFound:
            return []


def _once(done: set[str], ref: Any) -> Iterator[Any]:
    key = ref._GetMoId()  # noqa: SLF001
    if key not in done:
        done.add(key)
        yield ref


def _named(steps: list[Any]) -> dict[str, Any]:
    """Returns the named traversals anywhere below a selection."""
    found: dict[str, Any] = {}
    for step in steps:
        if isinstance(step, query.TraversalSpec):
            if step.name:
                found[step.name] = step
            found |= _named(list(step.selectSet))
    return found


def _member(value: Any, name: str, path: str) -> Any:
    if not isinstance(value, VmomiSupport.DataObject):
        raise _invalid_property(path)
    try:
        info = value._GetPropertyInfo(name)  # noqa: SLF001
    except AttributeError as err:
        raise _invalid_property(path) from err
    member = getattr(value, info.name)
    return None if isinstance(member, list) and not member else typed(member, info.type)


def _invalid_property(path: str) -> Any:
    return vmodl.query.InvalidProperty(name=path, msg=f"InvalidProperty: {path}")
