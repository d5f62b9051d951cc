"""Reads properties of many managed objects in few round trips, with vCenter's property collector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pyVmomi import vim, vmodl

PAGE_OBJECTS = 500
"""Objects in one answer."""

_collector = vmodl.query.PropertyCollector


def read_all(service: Any, kinds: dict[Any, Sequence[str]]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yields every object of some kinds in the whole inventory with the properties asked for.

    Args:
        service: pyVmomi's service instance.
        kinds: For each managed object type, property paths.

    Yields:
        (object, properties); a property that is not set is missing.
    """
    content = service.content
    view = content.viewManager.CreateContainerView(content.rootFolder, list(kinds), True)  # noqa: FBT003  # recursive
    try:
        traversal = _collector.TraversalSpec(name="view", path="view", skip=False, type=vim.view.ContainerView)
        start = _collector.ObjectSpec(obj=view, skip=True, selectSet=[traversal])
        yield from _retrieve(content, [start], kinds)
    finally:
        view.Destroy()


def read_some(service: Any, objects: Sequence[Any], paths: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns properties of given objects of one type, by managed object id."""
    if not objects:
        return {}
    starts = [_collector.ObjectSpec(obj=each, skip=False) for each in objects]
    found = _retrieve(service.content, starts, {type(objects[0]): paths})
    return {moref_of(each): properties for each, properties in found}


def read_around(
    service: Any, start: Any, steps: Sequence[Any], kinds: dict[Any, Sequence[str]]
) -> list[tuple[Any, dict[str, Any]]]:
    """Returns an object and those that steps lead to from it, with properties, in one round trip.

    Args:
        service: pyVmomi's service instance.
        start: The object.
        steps: As `step` makes them.
        kinds: For each managed object type, property paths.
    """
    content = service.content
    return list(_retrieve(content, [_collector.ObjectSpec(obj=start, skip=False, selectSet=list(steps))], kinds))


def step(kind: Any, path: str, *, again: bool = False) -> Any:
    """Returns the step from an object of a type to those that one of its properties names.

    Args:
        kind: The type.
        path: The property.
        again: Go on by the same step from where it leads.
    """
    name = f"{kind.__name__}.{path}"
    further = [_collector.SelectionSpec(name=name)] if again else []
    return _collector.TraversalSpec(name=name, type=kind, path=path, skip=False, selectSet=further)


def moref_of(managed: Any) -> str:
    """Returns the id of a managed object, such as `vm-42`."""
    return str(managed._GetMoId())  # noqa: SLF001  # pyVmomi has no public name for it


def _retrieve(content: Any, starts: list[Any], kinds: dict[Any, Sequence[str]]) -> Iterator[tuple[Any, dict[str, Any]]]:
    wanted = [_collector.PropertySpec(type=kind, pathSet=list(paths), all=False) for kind, paths in kinds.items()]
    spec = _collector.FilterSpec(objectSet=starts, propSet=wanted, reportMissingObjectsInResults=True)
    collector = content.propertyCollector
    page = collector.RetrievePropertiesEx([spec], _collector.RetrieveOptions(maxObjects=PAGE_OBJECTS))
    while page is not None:
        for entry in page.objects:
            yield entry.obj, {each.name: each.val for each in entry.propSet}
        page = collector.ContinueRetrievePropertiesEx(page.token) if page.token else None
