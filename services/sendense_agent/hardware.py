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


GUEST_SECRETS = "guestinfo."
"""Options of this name are the guest's own, often user data with passwords (cloud-init): they are not kept."""


def hardware_json(properties: dict[str, Any]) -> str:
    """Returns the JSON of the properties that `PATHS` names; keys are sorted, unset properties are left out."""
    found = {path.removeprefix("config."): properties[path] for path in PATHS if path in properties}
    if "extraConfig" in found:
        found["extraConfig"] = [each for each in found["extraConfig"] if not each.key.startswith(GUEST_SECRETS)]
    return json.dumps(found, cls=VmomiJSONEncoder, strip_dynamic=True, sort_keys=True)
