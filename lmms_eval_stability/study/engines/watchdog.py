"""Ends what a process has started, and what those have started, when it is gone, however it ended (Linux).

A worker that is killed cannot clean up, and the signal that its process gets then does not reach that one's children.
"""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

#: Variable that marks everything that descends from one job, in whatever session or process group.
MARK = "LMMS_EVAL_STABILITY_JOB"

#: Leaves its parent, which may kill its children at its end, waits for the end of its input, and kills what is marked.
_WATCHDOG = """
import os, sys, time
if os.fork():
    os._exit(0)
sys.stdin.buffer.read()
mark = sys.argv[1].encode()
for _ in range(100):
    found = False
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                marked = mark in file.read().split(b"\\0")
            if marked:
                os.kill(int(name), 9)
                found = True
        except OSError:
            pass
    if not found:
        break
    time.sleep(0.05)
"""


@contextmanager
def watched() -> Iterator[dict[str, str]]:
    """Variables for processes; all that has them is killed when the block is left, or this process is gone."""
    if sys.platform != "linux":
        yield {}
        return
    mark = uuid.uuid4().hex
    watchdog = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WATCHDOG, f"{MARK}={mark}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert watchdog.stdin is not None
    with watchdog.stdin:  # nobody else has this end of the pipe
        watchdog.wait()
        yield {MARK: mark}
