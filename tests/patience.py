"""How much longer than on a machine of its own kind a test waits before it gives up: it says nothing about speed."""

from __future__ import annotations

import os

IN_LAB = "VMHOST_IN_LAB"
"""Set in the environment of what runs inside the virtual lab (tests/lab/dispatch.py)."""

SLOWER = 4 if os.environ.get(IN_LAB) else 1
"""An emulated CPU is several times slower."""
