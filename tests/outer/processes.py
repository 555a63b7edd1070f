"""Processes for the tests: started, waited for, killed."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
#: A process that takes longer hangs.
PATIENCE = 300


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def module(name: str, *args: str, **options: Any) -> subprocess.Popen:
    """A Python process that runs a module of the tests; both of its streams come out of the first."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        (sys.executable, "-m", name, *args),
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **options,
    )


def child(**options: Any) -> subprocess.Popen:
    return module("tests.outer.child", json.dumps(options, default=str))


def children(processes: int, **options: Any) -> list[subprocess.Popen]:
    """Processes that train together."""
    port = free_port()
    return [child(processes=processes, rank=rank, port=port, **options) for rank in range(processes)]


def ended(process: subprocess.Popen, status: int = 0) -> str:
    """What a process said, when it has ended as it should."""
    try:
        said, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == status, said[-3000:]
    return said


def until(process: subprocess.Popen, line: str) -> None:
    """Wait until a process says a line that begins with this."""
    said = []
    assert process.stdout is not None
    for spoken in process.stdout:
        said.append(spoken)
        if f"{spoken.strip()} ".startswith(f"{line} "):
            return
    raise AssertionError("".join(said)[-3000:])


def loaded(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)
