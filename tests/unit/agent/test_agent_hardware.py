"""What of a VM is kept beside its restore points, and what is not."""

from __future__ import annotations

import json

from pyVmomi import vim

from sendense_agent.hardware import hardware_json


def test_the_guests_own_options_are_not_kept() -> None:
    options = [
        vim.option.OptionValue(key="guestinfo.userdata", value="password: hunter2"),
        vim.option.OptionValue(key="disk.EnableUUID", value="TRUE"),
    ]
    text = hardware_json({"config.name": "vm", "config.extraConfig": options})
    assert "hunter2" not in text
    assert [option["key"] for option in json.loads(text)["extraConfig"]] == ["disk.EnableUUID"]
    assert json.loads(text)["name"] == "vm"
