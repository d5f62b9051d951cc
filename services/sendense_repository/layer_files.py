"""Takes a layer's files away."""

from __future__ import annotations

from sendense_repository import durable
from sendense_repository.file_flags import unprotect
from sendense_repository.layout import LayerFiles


def remove_layer_files(files: LayerFiles) -> None:
    """Removes all files of a layer durably, the sidecar first; blocks for the disk. What is not there is no error."""
    if not files.directory.is_dir():
        return
    unprotect(files.all)
    for path in files.all:
        durable.remove(path)
    durable.sync_directory(files.directory)
