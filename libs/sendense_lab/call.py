"""One call of the vSphere API, as the methods see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyVmomi import vim, vmodl

from sendense_lab.sessions import Session
from sendense_lab.soap import Request


@dataclass
class Call:
    """A request with its session.

    Attributes:
        request: The parsed request.
        secret: Value of the session cookie that came with it.
        session: The session, None when there is none.
        new_secret: Set by a login: the cookie to hand out.
    """

    request: Request
    secret: str | None
    session: Session | None
    new_secret: str | None = None

    def argument(self, name: str) -> Any:
        """Returns an argument, None when it was not given."""
        return self.request.arguments.get(name)

    @property
    def moref(self) -> str:
        """Managed object id of the object called."""
        return str(self.request.this._GetMoId())  # noqa: SLF001 - pyVmomi offers no other name for it

    @property
    def logged_in(self) -> Session:
        """The session.

        Raises:
            vim.fault.NotAuthenticated: There is none.
        """
        if self.session is None:
            raise vim.fault.NotAuthenticated(
                object=self.request.this, privilegeId="System.View", msg="The session is not authenticated."
            )
        return self.session

    def gone(self) -> Any:
        """Returns the fault for an object that is not there any more."""
        return vmodl.fault.ManagedObjectNotFound(
            obj=self.request.this, msg=f"The object {self.moref} has already been deleted"
        )


def invalid(name: str) -> Any:
    """Returns the fault for an argument that makes no sense."""
    return vmodl.fault.InvalidArgument(invalidProperty=name, msg=f"A specified parameter was not correct: {name}")
