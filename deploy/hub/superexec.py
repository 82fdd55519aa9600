"""Flower's SuperExec, but that a ServerApp gets its token where nobody else reads it.

Flower puts the token on the ServerApp's command line, where every account of the machine reads it:
with it one may speak to SuperLink as that run. Flower's programs also take it from a file; this one
is in memory, is handed over open, and has no name that another process could use.
"""

from __future__ import annotations

import os
import subprocess

from flwr.supercore.cli import flower_superexec
from flwr.supercore.constant import TASK_TYPE_TO_APPIO_API_ADDRESS_ARG, TASK_TYPE_TO_COMMAND
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult
from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor


def launch(self: SubprocessExecutor, spec: ExecutionSpec) -> LaunchResult:
    """Start what `spec` describes as `SubprocessExecutor.launch` would, but for the token."""
    token = os.memfd_create("token")
    try:
        os.write(token, spec.token.encode())
        command = [
            TASK_TYPE_TO_COMMAND[spec.task_type],
            *(TASK_TYPE_TO_APPIO_API_ADDRESS_ARG[spec.task_type], spec.runtime_api_address),
            *("--token-file", f"/proc/self/fd/{token}"),
            *_options(spec),
        ]
        output = subprocess.DEVNULL if spec.suppress_output else None
        subprocess.Popen(command, pass_fds=(token,), stdout=output, stderr=output)  # noqa: S603
    finally:
        os.close(token)
    return LaunchResult.accepted()


def _options(spec: ExecutionSpec) -> list[str]:
    options: list[str] = []
    if spec.insecure:
        options.append("--insecure")
    elif spec.root_certificates_path is not None:
        options += ["--root-certificates", spec.root_certificates_path]
    if spec.parent_pid is not None:
        options += ["--parent-pid", str(spec.parent_pid)]
    if spec.runtime_dependency_install:
        options.append("--allow-runtime-dependency-installation")
    return options


def main() -> None:
    """What the hub starts in place of `flower-superexec`, with the same arguments."""
    SubprocessExecutor.launch = launch  # type: ignore[method-assign]
    flower_superexec()


if __name__ == "__main__":
    main()
