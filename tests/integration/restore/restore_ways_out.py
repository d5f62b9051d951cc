"""Every way out of a mount that a guest may try, asked for in every way that there is (row 28 of the fault matrix).

`restore_images.make_tricks` makes them in a guest; they lead to `CANARY`, which must hold `SECRET`.
"""

from __future__ import annotations

import pytest
from restore_images import CANARY
from restore_world import World

from sendense.restore.v1 import restore_pb2
from sendense_rpc.errors import RemoteError

SECRET = "secret of the host"
WAYS_OUT = [
    "/tricks/absolute",
    "/tricks/climbing",
    f"/tricks/up{CANARY}",
    f"/tricks/proc{CANARY}",
    "/tricks/proc/../.." + str(CANARY),
    "/tricks/circle",
    "/linked" + str(CANARY),
    str(CANARY),
    "/tricks/../tricks/absolute",
    f"disk-0-part-1:/tricks/up{CANARY}",
]
ABOVE = ["/../../etc/passwd", "/..", "/etc/../../etc/passwd", r"/\x2e\x2e/x", "disk-0-part-1:/..", "/a/../../b"]
NOT_FILES = ["/tricks/fifo", "/tricks/device", "/tricks/disk"]
ODD = "caf\\xe9 \\\\ new\nline"


async def assert_no_way_out(world: World, mount_id: str, forms: list[str]) -> None:
    for path in WAYS_OUT:
        async with world.get(mount_id, path) as response:
            body = await response.read()
            assert response.status in (400, 404), path
            assert SECRET.encode() not in body
        with pytest.raises(RemoteError) as caught:
            await world.page(mount_id, path)
        assert caught.value.reason in ("FILE_NOT_FOUND", "FILE_UNREADABLE", "NOT_A_DIRECTORY"), path
        try:
            request = restore_pb2.GetFileRequest(mount_id=mount_id, path=path)
            entry = await world.peer.call(world.stub.GetFile, request)
        except RemoteError as error:
            if error.reason not in ("FILE_NOT_FOUND", "FILE_UNREADABLE"):
                raise
        else:
            assert entry.type == "symlink", path
    for path in ABOVE:
        with pytest.raises(RemoteError) as caught:
            await world.page(mount_id, path)
        assert caught.value.reason == "PATH_OUTSIDE_MOUNT", path
    for path in NOT_FILES:
        async with world.get(mount_id, path) as response:
            assert (response.status, (await response.json())["reason"]) == (400, "NOT_A_FILE"), path
    assert set(await world.entries(mount_id, "/tricks/up")) == set(await world.entries(mount_id, "/"))
    # An archive holds the links themselves, and each name as it is.
    for form in forms:
        params = {"path": "/tricks", "archive": form}
        async with world.http.get(world.url(mount_id), params=params, headers=world.headers()) as response:
            assert response.status == 200
            assert SECRET.encode() not in await response.read()
    assert await world.download(mount_id, f"/tricks/{ODD}") == b"odd name\n"
    entry = (await world.entries(mount_id, "/tricks"))[ODD]
    assert entry.raw_name == b"caf\xe9 \\ new\nline"
