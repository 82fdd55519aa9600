"""`consortium.toml`: who works together, where their hub is, and how long certificates hold."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import AfterValidator, Field, model_validator

from client.kit import Address, Role, check_host
from common import catalogue
from common.errors import SettingError
from common.sections import RESERVED, Name
from common.settings import Table, checked, line_of, read_toml
from common.study import check_name

_FOLDERS: Final = frozenset({"ca", "hub"})  # of the kits, beside those of the sites
_TEMPLATE: Final = """# {name}: who works together; then: callosum provision {file} --out KITS
# Later, add a site here and run the same command again: it touches nothing that is there.
name = "{name}"
hub = "hub.example.org:443"    # where sites reach the hub from outside
names = []                     # further names of the hub's machine, for its certificate
port = 9095                    # where SuperLink listens, on that machine alone
contact = "Jane Doe, jane@example.org, +49 30 1234567"    # whom a site calls

[days]                         # how long certificates hold
ca = 3650
server = 825                   # renewing it changes nothing at the sites
site = 1825                    # between a site's two processes

[[sites]]
name = "hospital-a"
role = "train"                 # contributes to weights
data = "t1w"                   # "features" for tables; fits the site file that the kit begins with

[[sites]]
name = "hospital-b"
role = "train"
data = "t1w"

[[sites]]
name = "hospital-c"
role = "train"
data = "t1w"

[[sites]]
name = "hospital-d"
role = "heldout"               # only judges
data = "t1w"
"""

Days = Annotated[int, Field(ge=1, le=36_500)]
Host = Annotated[str, AfterValidator(check_host)]


class Lifetimes(Table):
    """For how many days certificates hold."""

    ca: Days = Field(3650, description="Of the consortium's authority.")
    server: Days = Field(825, description="Of the hub; renewing it changes no site.")
    site: Days = Field(1825, description="Of the pair between a site's agent and its courier.")


class Hub(Table):
    """What the consortium's file and the hub's kit both say."""

    names: tuple[Host, ...] = Field(
        (), description="Further names or addresses of the hub, for its certificate."
    )
    port: Annotated[int, Field(ge=1, le=65_535)] = Field(
        9095, description="Port of SuperLink on the hub's own machine."
    )
    contact: str = Field(description="Whom a site calls: name, mail, telephone.", min_length=1)
    days: Lifetimes = Field(Lifetimes(), description="How long certificates hold.")


def _installed(kind: str) -> str:
    if kind not in catalogue.names("kinds"):
        raise ValueError(f"no such data kind is installed; {', '.join(catalogue.names('kinds'))}")
    return kind


class Member(Table):
    """One site of the consortium."""

    name: Name = Field(description="The site's name, as in the study.")
    role: Role = Field(description="train: contributes to weights. heldout: only judges.")
    data: Annotated[str, AfterValidator(_installed)] = Field(
        "t1w", description="Kind of data that the site file in the kit begins with."
    )


class Consortium(Hub):
    """Everyone who takes part."""

    name: Name = Field(description="The consortium's name.")
    hub: Address = Field(description='Where sites reach the hub, as "host:port".')
    sites: tuple[Member, ...] = Field(description="Who takes part.", min_length=1)

    @model_validator(mode="after")
    def _names_are_apart(self) -> Self:
        known = Counter[str]()
        for number, site in enumerate(self.sites):
            at = f'sites.{number}.name is "{site.name}"'
            known[site.name] += 1
            if known[site.name] > 1:
                raise ValueError(f"{at}; another site has that name already, give it its own")
            if site.name in RESERVED:
                raise ValueError(f"{at}; results use that name, choose another")
            if site.name in _FOLDERS:
                raise ValueError(f"{at}; the kits have a folder of that name, choose another")
        return self


def load_consortium(path: Path) -> Consortium:
    """Read and check a consortium file.

    Raises
    ------
    SettingError
        Naming every fault with its key, line and remedy.
    """
    return checked(Consortium, read_toml(path), file=path)


def refuse(path: Path, key: str, problem: str) -> SettingError:
    """The error that `key` of the consortium file at `path` is at fault."""
    return SettingError(f"{key} {problem} ({path}{line_of(path, key)})")


def consortium_template(name: str = "our-consortium", file: str = "consortium.toml") -> str:
    """The text of a new consortium file, to be edited.

    Raises
    ------
    SettingError
        If no consortium may have that name.
    """
    check_name(name)
    return _TEMPLATE.format(name=name, file=file)
