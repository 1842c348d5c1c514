"""What several dashboards have: what is chosen above their panels, and marks at starts."""

from __future__ import annotations

from dashboards.model import Annotation, Variable
from dashboards.promql import of_guest, on_host

INSTANCE = Variable("instance", "Host", "vmhost_build_info")
VMS = Variable("vm", "Guest", 'vmhost_vm_info{instance=~"$instance"}')
ONE_VM = Variable("vm", "Guest", 'vmhost_vm_info{instance=~"$instance"}', several=False)
BRIDGE = Variable("bridge", "Bridge", 'vmhost_bridge_up{instance=~"$instance"}')

GUEST_STARTS = Annotation(
    "Starts of guests", f"{of_guest('vm_start_time_seconds')} * 1000", "{{vm}} was started", "light-blue"
)
AGENT_STARTS = Annotation(
    "Starts of the agent", f"{on_host('start_time_seconds')} * 1000", "the agent on {{instance}} was started", "purple"
)
