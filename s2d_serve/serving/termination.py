"""SIGTERM in a replica.

Ray keeps the main thread of a worker outside Python, so that no handler of `signal` ever runs
there. `faulthandler` writes from the signal handler itself, into a pipe that a thread reads.
"""

import faulthandler
import os
import signal
import threading


def told_to_end() -> threading.Event:
    """An event that SIGTERM sets, in place of ending the process."""
    told = threading.Event()
    reader, writer = os.pipe()
    faulthandler.register(signal.SIGTERM, file=writer, all_threads=False)

    def wait() -> None:
        os.read(reader, 1)
        told.set()

    threading.Thread(target=wait, name="sigterm", daemon=True).start()
    return told
