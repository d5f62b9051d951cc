"""qemu's programs for Sendense: qemu-img, headers checked before qemu sees them, the storage daemon."""
