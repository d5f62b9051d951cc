"""The fixtures of the lab's tests."""

from lab_rig import exported, home, lab, vcenter

__all__ = ["exported", "home", "lab", "vcenter"]
