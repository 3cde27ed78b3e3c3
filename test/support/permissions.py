"""Processes that permissions bind, also where the tests run as root."""

from __future__ import annotations

import os
import shutil

import pytest


def bound() -> list[str]:
    """What to put before a command; skips the test where nothing can bind root."""
    if os.getuid():
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("permissions do not bind root, and there is no setpriv")
    least = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={least}", f"--inh-caps={least}"]
