"""How people name disks, those that are there and those that they want; the command line needs nothing more."""

from __future__ import annotations

DiskName = int | str
"""What a command may call a disk: its index from 0, its device key, or its uuid."""
FIRST_KEY = 2000
"""Device key of the first disk on the first SCSI controller, as in vSphere."""
DISK_HELP = (
    "Write SIZE[:KIND][@BUS[:UNIT]][,OPTION]…, as 2G:ext4, 64M:blank@1:0 or 16M:blank,independent. Kinds: ext4, xfs, "
    "blank. Options: independent, nonpersistent, rdm, rdm-virtual, "
    "multi-writer, datastore=NAME."
)
