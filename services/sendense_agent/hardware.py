"""The VM's hardware as JSON: everything needed to make the VM again, kept beside its restore points."""

from __future__ import annotations

import json
from typing import Any

from pyVmomi.VmomiJSONEncoder import VmomiJSONEncoder

PATHS = (
    "config.annotation",
    "config.bootOptions",
    "config.cpuAllocation",
    "config.extraConfig",
    "config.files",
    "config.firmware",
    "config.flags",
    "config.guestFullName",
    "config.guestId",
    "config.hardware",
    "config.memoryAllocation",
    "config.name",
    "config.instanceUuid",
    "config.uuid",
    "config.version",
)
"""Property paths that go into the JSON."""


def hardware_json(properties: dict[str, Any]) -> str:
    """Returns the JSON of the properties that `PATHS` names; keys are sorted, unset properties are left out."""
    found = {path.removeprefix("config."): properties[path] for path in PATHS if path in properties}
    return json.dumps(found, cls=VmomiJSONEncoder, strip_dynamic=True, sort_keys=True)
