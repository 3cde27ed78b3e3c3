"""Imported first: from then on Ctrl-C ends the process with one word, amid other imports too.

Whoever starts the process blocks SIGINT until then, so that none meets Python half awake.
"""

from __future__ import annotations

import os
import signal
from typing import Any


def _end(number: int, frame: Any) -> None:
    os.write(2, b"demo: stopped.\n")
    os._exit(128 + number)


signal.signal(signal.SIGINT, _end)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
