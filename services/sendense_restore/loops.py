"""Loop devices over parts of exported disks."""

from __future__ import annotations

from pathlib import Path

from sendense_restore.programs import ProgramError, run

_SYS_BLOCK = Path("/sys/block")
_DELETED = " (deleted)"


async def attach(image: Path, offset: int, size: int) -> str:
    """Makes a loop device of a range of a file, writable so that a journal can be replayed.

    Returns:
        The device, such as `/dev/loop7`.

    Raises:
        ProgramError: There is no loop device left, or the file cannot be used.
    """
    ended = await run(
        ["losetup", "--find", "--show", "--offset", str(offset), "--sizelimit", str(size), "--", str(image)]
    )
    return ended.stdout.decode().strip()


async def detach(device: str) -> None:
    """Frees a loop device; one that is still in use is freed by the kernel at its last close.

    Raises:
        ProgramError: losetup refused.
    """
    try:
        await run(["losetup", "--detach", device])
    except ProgramError:
        if (_SYS_BLOCK / Path(device).name / "loop").exists():
            raise


def attached_below(directory: Path) -> list[str]:
    """Returns the loop devices whose file lies below a directory."""
    found: list[str] = []
    for block in _SYS_BLOCK.glob("loop*"):
        try:
            raw = (block / "loop" / "backing_file").read_bytes()
        except OSError:  # not attached, or detached meanwhile
            continue
        backing = Path(raw.decode("utf-8", "surrogateescape").rstrip("\n").removesuffix(_DELETED))
        if backing.is_relative_to(directory):
            found.append(f"/dev/{block.name}")
    return sorted(found)
