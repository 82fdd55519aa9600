"""The page that comes with each kit: what to do, in order, what is secret, whom to call."""

from __future__ import annotations

from typing import Final

from client.kit import SiteKit
from deploy.kits.consortium import Consortium

_SITE: Final = """# {name} in {consortium}

This folder is your site's kit. No scan and no row of a table leaves your house through it: what may
leave are counts, measurements and the weights of a network, each with a receipt that you can read.
Questions, or something is wrong: **{contact}**

## What to do, in order

You need the `callosum` package in the version that the coordinator names, and the study file
`study.toml`; both come separately. Commands are typed in this folder.

1. Put this folder where it stays. `agent/` belongs to the user who may read the data, `courier/` to
   another user, who may not. Both stay closed to everyone else (mode 0700).
2. Edit `agent/site.toml`: where the data are, what your columns mean, what you allow.
3. As the first user, see what is found, prepare it, then read and approve what the study asks:

```sh
callosum-site check --study study.toml --kit .
callosum-site prepare --study study.toml --kit .
callosum-site approve study.toml --kit .
```

4. Start the agent as the first user and the courier as the second. They run for weeks; either may
   be restarted at any moment. Between the two lies a socket in `run`: make that folder beforehand,
   owned by the first user and a group that both are in (`install -d -m 2750 -o USER -g GROUP run`).

```sh
callosum-site serve --kit .
callosum-site node --kit .
```

5. Now, and whenever something is slow or silent, ask what is in the way:

```sh
callosum-site doctor --kit .
```

The only connection to the outside is the courier's own, to `{hub}`. Nothing dials in.

## What is secret

| file | what it is | who may read it |
|---|---|---|
| `agent/agent.key` | the agent's end of the line to the courier | the agent's user |
| `courier/courier.key` | the courier's end of that line | the courier's user |
| `courier/node.key` | what the hub knows your site by | the courier's user |

Never mail them and never copy them to another site. If anyone else may have seen one, call the
contact above: it is replaced within minutes, and no other site is touched. The other files of this
kit are no secrets; what `agent/` gathers from your data is.

## When it ends

The first certificate of this kit ends on {expires}. `doctor` warns 30 days ahead; the coordinator
sends a new kit then. Take everything from it but `agent/site.toml`: yours stays as it is.

| file | what it is for |
|---|---|
| `kit.toml` | who you are (role `{role}`), and where the hub is |
| `ca.crt` | to recognise the hub |
| `coordinator.pem` | to recognise the coordinator's orders |
| `agent/`, `courier/` | what each of the two processes has to itself |
"""

_HUB: Final = """# The hub of {consortium}

Sites reach it at `{hub}`. Start it on this machine; it may be restarted at any moment:

```sh
callosum hub --kit .
```

## Hand the kits over

Each folder beside this one is one site's kit and holds that site's private keys. Send a site its
own folder and no other, by a way that only the recipient reads; then delete your copy. What the hub
needs of it is here: `nodes/SITE.pub`. The folder `ca/` goes on a disk in a drawer: it is needed to
renew the server's certificate, and for nothing else.

## Later

```sh
callosum provision consortium.toml --out KITS        # adds the sites that are new in the file
callosum provision --out KITS --rotate SITE          # new keys; only that site gets a new kit
callosum provision --out KITS --revoke SITE          # admits it no longer, until it is rotated
callosum provision --out KITS --renew-server         # no site notices
callosum provision --out KITS --rotate-coordinator   # then send every site coordinator.pem, and
callosum provision --out KITS --finish-coordinator   # when all have it, sign with the new key
```

Restart the hub after any of them. A command that was interrupted is completed by running it again.

## What is secret

| file | who has it can |
|---|---|
| `coordinator.key` | give orders in your name; what each site allows still holds |
| `server.key` | pose as the hub; orders are still signed by the key above |
| `superexec.secret` | run code on this machine while the hub runs |
| `../ca/ca.key` | make a certificate to pose as the hub with |

Whom the sites call: {contact}
"""


def site_readme(kit: SiteKit, contact: str) -> str:
    """The page of a site's kit."""
    return _SITE.format(
        name=kit.name,
        consortium=kit.consortium,
        role=kit.role,
        hub=kit.hub,
        expires=kit.expires.isoformat(),
        contact=contact,
    )


def hub_readme(consortium: Consortium) -> str:
    """The page of the hub's kit."""
    return _HUB.format(consortium=consortium.name, hub=consortium.hub, contact=consortium.contact)
