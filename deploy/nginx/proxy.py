"""The nginx file of one hub: the template beside this file with its four values filled in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Protocol

from common.errors import SettingError

TEMPLATE: Final = Path(__file__).with_name("callosum-hub.conf")
LOG: Final = "/var/log/nginx/callosum-hub.log"
_LISTEN: Final = re.compile(r"(?:[\w.*-]+:|\[[0-9A-Fa-f:]+\]:)?\d{1,5}")
_UNSAFE: Final = re.compile(r'["$\\\x00-\x1f]')  # would end a quoted value, or mean a variable


class Hub(Protocol):
    """What the file needs of a hub's kit."""

    @property
    def folder(self) -> Path:
        """Where server.crt, server.key and ca.crt lie."""

    @property
    def address(self) -> str:
        """What sites connect to, as "host:port"."""

    @property
    def port(self) -> int:
        """SuperLink's port on this machine."""


def render_nginx(hub: Hub, listen: str = "", log: str = LOG) -> str:
    """The file for nginx's `conf.d`.

    Parameters
    ----------
    listen : address and port to listen on; empty takes every address and the port that sites know
    log : file of the access log

    Raises
    ------
    SettingError
        If a value cannot stand in an nginx file.
    """
    listen = listen or f"0.0.0.0:{hub.address.rpartition(':')[2]}"
    if not _LISTEN.fullmatch(listen):
        raise SettingError(
            f'nginx cannot listen on "{listen}"; address:port is needed, such as 0.0.0.0:9443'
        )
    values = {
        "CALLOSUM_LISTEN": listen,
        "CALLOSUM_KIT": str(hub.folder.absolute()),
        "CALLOSUM_PORT": str(hub.port),
        "CALLOSUM_LOG": log,
    }
    text = TEMPLATE.read_text()
    for name, value in values.items():
        if _UNSAFE.search(value):
            raise SettingError(f"{value!r} cannot stand in an nginx file; use a plainer path")
        text = text.replace("${" + name + "}", value)
    return text
