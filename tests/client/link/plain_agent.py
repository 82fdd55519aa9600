"""An agent without data or network: says back what it is given. `plain_agent.py SOCKET [SECONDS]`.

SECONDS is how long it works on each order before it sends the report. Prints `ready`, then a line
at every arrival; `peak` in the order's text makes the report say this process' peak of memory.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from client.link.listener import Answer, Asking, Said, serve_link


def peak_bytes() -> int:
    """The most memory that this process ever had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def main(socket: Path, seconds: float) -> None:
    def answer(asking: Asking) -> Iterator[Said]:
        yield "send"
        arrays = list(asking.arrays())
        print("arrived", flush=True)
        began = time.monotonic()
        while (worked := time.monotonic() - began) < seconds:
            yield worked
            time.sleep(0.05)
        text = str(peak_bytes()) if asking.sealed.text == "peak" else asking.sealed.text
        yield Answer(text, [(name, [data]) for name, data in arrays])

    listener = serve_link(answer, socket=socket)
    print("ready", flush=True)
    threading.Event().wait()
    listener.stop(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)
