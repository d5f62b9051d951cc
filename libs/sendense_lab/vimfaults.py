"""Faults of the vSphere API by their names, as the commands give them."""

from __future__ import annotations

from typing import Any

from pyVmomi import VmomiSupport, vim, vmodl

from sendense_lab.errors import InvalidRequestError

_HOMES = (vim.fault, vmodl.fault, vmodl.query)


def fault_type(name: str) -> Any:
    """Returns the type of a fault.

    Raises:
        InvalidRequestError: The API has none of that name.
    """
    for home in _HOMES:
        found = getattr(home, name, None)
        if isinstance(found, type) and issubclass(found, vmodl.MethodFault):
            return found
    raise InvalidRequestError(
        f"The API has no fault {name!r}", help="Names are as FileFault, NoPermission, FileLocked."
    )


def make(name: str, this: Any, **properties: Any) -> Any:
    """Returns a fault of this name with whatever it cannot be sent without.

    Args:
        name: Its name.
        this: The managed object it is about.
        properties: Values for those of its properties that it has.

    Raises:
        InvalidRequestError: The API has none of that name.
    """
    fault = fault_type(name)(msg=f"{name}: the lab was told to fail here")
    for info in fault._GetPropertyList():  # noqa: SLF001 - pyVmomi's only way to know them
        if info.name in properties:
            setattr(fault, info.name, properties[info.name])
        elif not info.flags & VmomiSupport.F_OPTIONAL and getattr(fault, info.name) in (None, ""):
            setattr(fault, info.name, _filler(info.type, this))
    return fault


def _filler(declared: Any, this: Any) -> Any:
    if issubclass(declared, VmomiSupport.ManagedObject):
        return this if isinstance(this, declared) else declared("none")
    if issubclass(declared, vmodl.MethodFault):
        return vmodl.fault.SystemError(reason="the lab was told to fail here")
    if issubclass(declared, VmomiSupport.Enum):
        return declared.values[0]
    if issubclass(declared, str):
        return declared("the lab")
    return declared()
