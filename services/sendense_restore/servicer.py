"""RestoreService: the edge between gRPC and `mounts`."""

from __future__ import annotations

import asyncio
from typing import Any

from sendense.restore.v1 import restore_pb2, restore_pb2_grpc
from sendense_restore.convert import entry_message, mount_message, page_message, search_message
from sendense_restore.entries import look_at
from sendense_restore.listing import Order, list_directory
from sendense_restore.mounts import Mounts
from sendense_restore.paths import parse_guest_path
from sendense_restore.search import search
from sendense_restore.tree import Wish

DEFAULT_WAIT_SECONDS = 10
MAX_WAIT_SECONDS = 60


class RestoreServicer(restore_pb2_grpc.RestoreServiceServicer):
    """Serves mounts and listings; contracts are in restore.proto."""

    def __init__(self, mounts: Mounts) -> None:
        self._mounts = mounts

    async def MountBackup(self, request: restore_pb2.MountBackupRequest, context: Any) -> restore_pb2.Mount:
        """Mounts a restore point."""
        del context
        wish = Wish(request.backend, tuple(request.passphrases), tuple(sorted(set(request.disk_ids))), request.force)
        wait = min(request.wait_seconds or DEFAULT_WAIT_SECONDS, MAX_WAIT_SECONDS)
        return mount_message(await self._mounts.mount(request.backup_id, request.request_id, wish, wait))

    async def ListMounts(self, request: restore_pb2.ListMountsRequest, context: Any) -> restore_pb2.ListMountsResponse:
        """Lists what is mounted."""
        del request, context
        return restore_pb2.ListMountsResponse(
            mounts=[mount_message(mount) for mount in await self._mounts.all_admitted()]
        )

    async def GetMount(self, request: restore_pb2.GetMountRequest, context: Any) -> restore_pb2.Mount:
        """Returns one mount."""
        del context
        return mount_message(await self._mounts.admitted(request.mount_id))

    async def ListFiles(self, request: restore_pb2.ListFilesRequest, context: Any) -> restore_pb2.ListFilesResponse:
        """Lists a page of a directory."""
        del context
        mount = await self._mounts.admitted(request.mount_id)
        path = parse_guest_path(request.path)
        order = Order.of(request.order_by, request.pattern)
        with mount.used():
            page = await asyncio.to_thread(
                list_directory, mount.listings, mount.root_of(path), path, order, request.page_size, request.page_token
            )
        return page_message(path, page)

    async def GetFile(self, request: restore_pb2.GetFileRequest, context: Any) -> restore_pb2.FileEntry:
        """Describes a file."""
        del context
        mount = await self._mounts.admitted(request.mount_id)
        path = parse_guest_path(request.path)
        with mount.used():
            entry = await asyncio.to_thread(look_at, mount.root_of(path), path)
        return entry_message(entry, path.display)

    async def SearchFiles(
        self, request: restore_pb2.SearchFilesRequest, context: Any
    ) -> restore_pb2.SearchFilesResponse:
        """Looks for names below a directory."""
        del context
        mount = await self._mounts.admitted(request.mount_id)
        path = parse_guest_path(request.path)
        with mount.used():
            found = await asyncio.to_thread(search, mount.root_of(path), path, request.pattern, request.limit)
        return search_message(found)

    async def UnmountBackup(
        self, request: restore_pb2.UnmountBackupRequest, context: Any
    ) -> restore_pb2.UnmountBackupResponse:
        """Unmounts."""
        del context
        mount = await self._mounts.admitted(request.mount_id)
        await self._mounts.unmount(mount.mount_id, force=request.force)
        return restore_pb2.UnmountBackupResponse()
