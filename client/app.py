"""The courier: carries each order that Flower brings to the site's agent, and its report back.

It holds no data, imports no torch and believes nothing that it carries. Node config: `agent` is the
agent's address, `kit` the site's kit with the courier's own TLS files, empty for a Unix socket.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.kit import open_kit
from client.link.caller import ask
from common.errors import Refusal
from common.protocol.orders import declined
from common.protocol.wire import forward, unpack_sealed

_PATIENCE_S: Final = 600.0  # an agent that is being updated or restarted is away for minutes

app = ClientApp()


@app.train()
def carry(message: Message, context: Context) -> Message:
    """One order to the agent and its answer back; whatever goes wrong is a code."""
    address, kit = str(context.node_config["agent"]), str(context.node_config["kit"])
    try:
        sealed, arrays = unpack_sealed(message.content)
        tls = open_kit(Path(kit)).courier_tls if kit else None
        text, sent = ask(address, tls, sealed, arrays, patience_s=_PATIENCE_S)
        content = forward(text, sent)
    except Refusal as refusal:
        content = forward(declined(refusal.code), [])
    return Message(content, reply_to=message)
