"""The repository service, as exports asks it: which directories are repositories."""

from __future__ import annotations

from pathlib import Path

from sendense.repository.v1 import repository_pb2, repository_pb2_grpc
from sendense_rpc.channel import Peer

SECONDS = 10.0


class Repositories:
    """RepositoryService."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._stub = repository_pb2_grpc.RepositoryServiceStub(peer.channel)

    async def directories(self) -> list[Path]:
        """Returns the root directories of all registered repositories.

        Raises:
            SendenseError: The service does not answer.
        """
        request = repository_pb2.ListRepositoriesRequest()
        answer = await self._peer.call(self._stub.ListRepositories, request, timeout=SECONDS)
        return [Path(repository.path) for repository in answer.repositories]
