"""Which gateway, how it is trusted, who we are: each setting from the first of four places that knows it.

In this order: an option of the command line, the environment, the configuration file, the state directory of a node on
this machine. A token itself is never an option, a variable or a line of the file: each of them names the file that
holds it, since every user of a machine can read command lines.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

VARIABLES = {
    "endpoint": "SENDENSE_ENDPOINT",
    "ca_file": "SENDENSE_CA",
    "token_file": "SENDENSE_TOKEN_FILE",
    "home": "SENDENSE_HOME",
}
"""The environment's name of each setting."""

OPTIONS = {"endpoint": "--endpoint", "ca_file": "--ca", "token_file": "--token-file"}
"""The command line's name of each setting that has one."""


class ConfigurationError(Exception):
    """A setting is missing or wrong; the message names it and where it was looked for.

    Attributes:
        help: What to do.
    """

    def __init__(self, message: str, help_: str) -> None:
        super().__init__(message)
        self.help = help_


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting.

    Attributes:
        value: Its value; empty when nothing says one.
        origin: Where the value is from, in words.
    """

    value: str
    origin: str


@dataclass(frozen=True, slots=True)
class Configuration:
    """All settings with their origins.

    Attributes:
        endpoint: `https://host:port` of the gateway.
        ca_file: Certificate (PEM) that the gateway's must descend from; empty trusts the system's.
        token_file: File that holds the bearer token.
        home: State directory of a node on this machine, which knows the other three.
        file: The configuration file that was looked for, whether it is there or not.
    """

    endpoint: Setting
    ca_file: Setting
    token_file: Setting
    home: Setting
    file: Path


given: ContextVar[Mapping[str, str]] = ContextVar("given", default={})  # noqa: B039  # never changed, only replaced
"""The options of the command line that were given, by the setting's name."""


def configuration_file(environment: Mapping[str, str]) -> Path:
    """Returns where the configuration file is: `$SENDENSE_CONFIG`, else `sendense/ctl.toml` in the user's settings."""
    if "SENDENSE_CONFIG" in environment:
        return Path(environment["SENDENSE_CONFIG"])
    home = Path(environment.get("HOME", "/"))
    return Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "sendense" / "ctl.toml"


def load(options: Mapping[str, str], environment: Mapping[str, str]) -> Configuration:
    """Finds each setting's value and origin.

    Args:
        options: What the command line says, by the setting's name.
        environment: The environment's variables.

    Raises:
        ConfigurationError: The file cannot be read, is no TOML, or has a key or value that means nothing.
    """
    path = configuration_file(environment)
    written = _read_file(path)

    def find(name: str) -> Setting | None:
        if options.get(name):
            return Setting(options[name], f"option {OPTIONS[name]}")
        variable = VARIABLES[name]
        if environment.get(variable):
            return Setting(environment[variable], f"environment variable {variable}")
        if name in written:
            return Setting(written[name], f"{path}")
        return None

    home = find("home") or Setting("var", "default")
    found = {name: find(name) or Setting("", "") for name in OPTIONS}
    if not found["endpoint"].value:
        # Only with the node's own gateway do its certificate and its administrator's token mean something.
        found = _of_node(Path(home.value)) | {name: each for name, each in found.items() if each.value}
    return Configuration(**found, home=home, file=path)


def _of_node(home: Path) -> dict[str, Setting]:
    """Returns what a node that runs on this machine left in its state directory."""
    nothing = Setting("", "")
    try:
        endpoint = (home / "endpoint").read_text().strip()
    except OSError:
        return dict.fromkeys(OPTIONS, nothing)
    files = {"ca_file": home / "tls" / "ca.crt", "token_file": home / "admin.token"}
    origin = f"the node in {home}"
    return {"endpoint": Setting(endpoint, origin)} | {
        name: Setting(str(path), origin) if path.is_file() else nothing for name, path in files.items()
    }


def current() -> Configuration:
    """Returns the configuration of this process.

    Raises:
        ConfigurationError: As `load`.
    """
    return load(given.get(), os.environ)


def _read_file(path: Path) -> dict[str, str]:
    help_ = "See `sendense-ctl config explain --help`."
    try:
        document = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}", help_) from error
    except ValueError as error:
        raise ConfigurationError(f"{path} is no TOML: {error}", help_) from error
    for key, value in document.items():
        if key not in VARIABLES:
            raise ConfigurationError(f"{path}: {key} is no setting; there are {', '.join(VARIABLES)}", help_)
        if not isinstance(value, str):
            raise ConfigurationError(f"{path}: {key} is no text in quotes", help_)
    return document
