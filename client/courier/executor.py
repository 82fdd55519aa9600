"""Carries what Flower's SuperNode receives, without running a line of what Flower's hub sends.

Flower starts a process of the shipped app bundle for every message. A hospital should not: this
process claims the SuperNode's tasks itself and hands each message to the courier that is installed
here. The bundle is never unpacked, and a round does not wait for Python to start.
"""

from __future__ import annotations

import sys
import time
from logging import getLogger
from pathlib import Path
from threading import Thread
from typing import Final

from flwr.app import Context, Message
from flwr.app.error import Error
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from client.app import app

_log = getLogger("callosum.courier")
_POLL_S: Final = 0.1
_MOST_AT_ONCE: Final = 8  # a SuperNode gives one; the others wait for what never comes
_CLAIM: Final = "/flwr.proto.Runtime/AcquireTask"


def carry_all(runtime: str, secret: bytes) -> None:
    """Claim and carry messages of the SuperNode at `runtime` for ever."""
    claims = RuntimeHttpClient.from_server_address(
        server_address=runtime,
        insecure=True,  # loopback of one machine; claims are authenticated by the secret
        root_certificates=None,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={_CLAIM}),
        ],
        retry_invoker=make_simple_http_retry_invoker(),
    )
    request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
    carrying: list[Thread] = []
    while True:
        found = claims.AcquireTask(request)
        if not found.HasField("task") or not found.token:
            time.sleep(_POLL_S)
            continue
        # a thread each: a message whose run was stopped is waited for in vain, for an hour
        carrying = [thread for thread in carrying if thread.is_alive()]
        if len(carrying) >= _MOST_AT_ONCE:
            raise SystemExit("too many messages never came whole; the courier starts anew")
        carrying.append(Thread(target=_carry_one, args=(runtime, found.token), daemon=True))
        carrying[-1].start()


def _carry_one(runtime: str, token: str) -> None:
    client = RuntimeHttpClient.from_server_address(
        server_address=runtime,
        insecure=True,
        root_certificates=None,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
            RuntimeTokenHttpInterceptor(token),
        ],
        retry_invoker=make_simple_http_retry_invoker(),
    )
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
    heartbeat.start()
    try:
        message, context, _, _ = pull_task_input(client)  # the bundle stays packed
        reply = _answered(message, context)
        push_message(client, reply, context)
        push_task_output(client, context, SubStatus.COMPLETED, "")
    except Exception:  # noqa: BLE001  one message must never end the courier
        _log.exception("a message could not be carried")
        push_task_output(client, None, SubStatus.FAILED, "not carried")
    finally:
        heartbeat.stop()
        client.close()


def _answered(message: Message, context: Context) -> Message:
    try:
        return app(message, context)
    except Exception:  # noqa: BLE001  its text may name paths of this site: a code travels, the text stays
        _log.exception("the courier failed")
        error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "the courier failed; see its log")
        return Message(error, reply_to=message)


def main() -> None:
    """`python -m client.courier.executor RUNTIME SECRET_FILE`: what `callosum-site node` starts."""
    runtime, secret = sys.argv[1:]
    carry_all(runtime, Path(secret).read_bytes())  # exact bytes, as Flower reads them


if __name__ == "__main__":
    main()
