"""Restore: mounts restore points read-only on throw-away overlays, shows their files and gives them back (DESIGN 8).

What always holds: a layer is never written; nothing that a guest's disk holds leads out of its mount; whatever a
mount makes on the host (overlay, daemon, FUSE file, loop device, kernel mounts, directories, lease) is found and
undone from the system's own state, so that unmounting, a failed mount and the clean-up after a crash are one code.
"""
