"""Ending what was started."""

import signal
import subprocess


def interrupted(process: "subprocess.Popen[bytes]", patience_s: float) -> bool:
    """Ask a process to end, as Ctrl-C does, if it still runs; whether it has ended in time."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            return False
    return True
