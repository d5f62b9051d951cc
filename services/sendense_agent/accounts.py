"""The agent's vCenters and their accounts: one file, readable by its owner only, read again when it changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError, model_validator

from sendense_agent.errors import VCenterFileInvalid


class Account(BaseModel):
    """A vCenter and how to log in to it.

    Attributes:
        name: What people call it; shown in errors.
        host: Address; must be a name in its certificate.
        port: TCP port.
        username: The account.
        password: Its password, or empty when `password_file` holds it.
        password_file: File with the password (0600).
        certificate: PEM file with its certificate, or the one that signed it; pinned.
        sha256: Fingerprint of its certificate, used when `certificate` is not given; colons are ignored.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    name: str = Field(min_length=1, max_length=100)
    host: str = Field(min_length=1)
    port: int = Field(default=443, ge=1, le=65535)
    username: str = Field(min_length=1)
    password: SecretStr = SecretStr("")
    password_file: Path | None = None
    certificate: Path | None = None
    sha256: str = ""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if not self.password.get_secret_value() and self.password_file is None:
            raise ValueError("password or password_file is needed")
        if self.certificate is None and len(self.fingerprint) != 64:
            raise ValueError("certificate (PEM file) or sha256 (64 hexadecimal digits) is needed: it is pinned")
        return self

    @property
    def fingerprint(self) -> str:
        """The SHA-256 fingerprint as lower-case hexadecimal digits; empty when none is given."""
        return self.sha256.replace(":", "").lower()

    def read_password(self) -> str:
        """Returns the password.

        Raises:
            VCenterFileInvalid: The password file is missing, or others can read it.
        """
        if self.password_file is None:
            return self.password.get_secret_value()
        return _read_private(self.password_file).rstrip("\r\n")


_ACCOUNTS = TypeAdapter(list[Account])


def read_accounts(path: Path) -> list[Account]:
    """Returns the accounts of a file; none when there is no file.

    Raises:
        VCenterFileInvalid: Others can read it, it is malformed, or two have one name.
    """
    if not path.exists():
        return []
    try:
        accounts = _ACCOUNTS.validate_python(json.loads(_read_private(path)))
    except json.JSONDecodeError as error:
        raise VCenterFileInvalid(str(path), f"is no JSON (line {error.lineno})") from error
    except ValidationError as error:
        # The input is hidden: a wrong field may hold the password.
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise VCenterFileInvalid(str(path), problems) from None
    names = [account.name for account in accounts]
    if len(set(names)) != len(names):
        raise VCenterFileInvalid(str(path), "two vCenters have one name")
    return accounts


def _read_private(path: Path) -> str:
    try:
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            raise VCenterFileInvalid(str(path), f"has mode {mode:04o}: others can read the password; `chmod 600` it")
        return path.read_text()
    except OSError as error:
        raise VCenterFileInvalid(str(path), f"cannot be read: {error.strerror}") from error
