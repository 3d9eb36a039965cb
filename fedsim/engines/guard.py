"""Runs a command that must not outlive whoever started it, even if that one is killed.

    python -m fedsim.engines.guard COMMAND ...

Started as the leader of a process group, to which the command and all that it starts belong.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

POLL_SECONDS = 0.5


def main() -> None:
    """Run the command line's command; end the whole group when the parent process is gone."""
    parent = os.getppid()
    child = subprocess.Popen(sys.argv[1:])
    while child.poll() is None:
        if os.getppid() != parent:
            os.killpg(0, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    raise SystemExit(child.returncode if child.returncode >= 0 else 128 - child.returncode)


if __name__ == "__main__":
    main()
