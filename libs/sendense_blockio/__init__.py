"""Extents, journals and the copy engine: what moves or describes blocks, and knows nothing of backups."""
