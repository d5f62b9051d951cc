"""A real qemu-storage-daemon for tests: images exported under names on one Unix socket."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


def make_qcow2(path: Path, size: int) -> Path:
    """Makes an empty qcow2 image."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size)], check=True)
    return path


@asynccontextmanager
async def storage_daemon(socket: Path, exports: dict[str, Path]) -> AsyncIterator[asyncio.subprocess.Process]:
    """Serves qcow2 images, writable, for the time of the block."""
    ready = socket.with_suffix(".pid")  # written once everything is served
    ready.unlink(missing_ok=True)
    arguments = ["--pidfile", str(ready), "--nbd-server", f"addr.type=unix,addr.path={socket}"]
    for index, (name, image) in enumerate(exports.items()):
        arguments += [
            "--blockdev",
            f"driver=file,filename={image},node-name=file{index}",
            "--blockdev",
            f"driver=qcow2,file=file{index},node-name=disk{index},discard=unmap",
            "--export",
            f"type=nbd,id=export{index},node-name=disk{index},name={name},writable=on",
        ]
    socket.parent.mkdir(parents=True, exist_ok=True)
    process = await asyncio.create_subprocess_exec("qemu-storage-daemon", *arguments)
    try:
        async with asyncio.timeout(10):
            while not ready.exists():  # a stat
                assert process.returncode is None, "qemu-storage-daemon ended"
                await asyncio.sleep(0.01)
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
