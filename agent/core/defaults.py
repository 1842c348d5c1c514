"""Where everything is unless a flag says otherwise; both commands have the same flags."""

from __future__ import annotations

UNITS_DIR = "/etc/vmhost.d"
RUN_DIR = "/run/vmhost"
STATE_DIR = "/var/lib/vmhost"

GROUP = "vmhost"
"""Its members may ask and tell the agent; the package makes it."""

SOCKET_NAME = "agent.sock"
"""The control socket's name in the run directory."""
