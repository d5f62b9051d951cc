"""RestoreService: the edge between gRPC and `mounts`."""

from __future__ import annotations

import asyncio
from typing import Any

from sendense.restore.v1 import restore_pb2, restore_pb2_grpc
from sendense_restore.convert import mount_message, page_message
from sendense_restore.listing import list_directory
from sendense_restore.mounts import Mounts
from sendense_restore.paths import parse_guest_path


class RestoreServicer(restore_pb2_grpc.RestoreServiceServicer):
    """Serves mounts and listings; contracts are in restore.proto."""

    def __init__(self, mounts: Mounts) -> None:
        self._mounts = mounts

    async def MountBackup(self, request: restore_pb2.MountBackupRequest, context: Any) -> restore_pb2.Mount:
        """Mounts a restore point."""
        del context
        mount = await self._mounts.mount(request.backup_id, request.request_id)
        return mount_message(mount, self._mounts.backend_name)

    async def ListMounts(self, request: restore_pb2.ListMountsRequest, context: Any) -> restore_pb2.ListMountsResponse:
        """Lists what is mounted."""
        del request, context
        mounts = [mount_message(mount, self._mounts.backend_name) for mount in self._mounts.all()]
        return restore_pb2.ListMountsResponse(mounts=mounts)

    async def GetMount(self, request: restore_pb2.GetMountRequest, context: Any) -> restore_pb2.Mount:
        """Returns one mount."""
        del context
        return mount_message(self._mounts.get(request.mount_id), self._mounts.backend_name)

    async def ListFiles(self, request: restore_pb2.ListFilesRequest, context: Any) -> restore_pb2.ListFilesResponse:
        """Lists a page of a directory."""
        del context
        mount = self._mounts.get(request.mount_id)
        path = parse_guest_path(request.path)
        with mount.used():
            page = await asyncio.to_thread(
                list_directory, mount.names, mount.root_of(path), path, request.page_size, request.page_token
            )
        return page_message(path, page)

    async def UnmountBackup(
        self, request: restore_pb2.UnmountBackupRequest, context: Any
    ) -> restore_pb2.UnmountBackupResponse:
        """Unmounts."""
        del context
        await self._mounts.unmount(request.mount_id, force=request.force)
        return restore_pb2.UnmountBackupResponse()
