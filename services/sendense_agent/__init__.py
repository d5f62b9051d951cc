"""The capture agent: vCenter sessions, snapshots, changed areas, disk readers and the copying of disks."""
