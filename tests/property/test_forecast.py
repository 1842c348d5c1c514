"""Whatever is wanted and seen: a forecast ends, no step of it breaks a precondition, and after it nothing is left."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.desired import Desired
from agent.core.model.host import apply
from agent.core.observed import End, Observed
from agent.core.planning import plan
from agent.core.tell.forecast import forecast
from tests.property.worlds import GUESTS, hosts, wishes

NOW_S = 1000.0
ends = st.lists(st.sampled_from(["crash", "killed", "guest_shutdown"]), max_size=7).map(
    lambda reasons: tuple(End(NOW_S - 2.0 * i, 0.1, "boot", reason) for i, reason in enumerate(reasons))[::-1]
)


@settings(max_examples=150)
@given(wishes(), wishes(), hosts(), st.fixed_dictionaries(dict.fromkeys(GUESTS, ends)))
def test_a_forecast_ends_where_nothing_is_left_to_do(
    first: Desired, then: Desired, host: Observed, ended: dict[str, tuple[End, ...]]
) -> None:
    at_s = NOW_S
    observed = Observed(host.links, disks=host.disks, host=host.host, ends=ended, max_disruption=host.max_disruption)
    for desired in (first, then):
        found = forecast(desired, observed, at_s)
        assert found.complete
        assert [step.after_s for step in found.steps] == sorted(step.after_s for step in found.steps)
        for step in found.steps:
            observed = apply(observed, step.action, at_s + step.after_s)
        at_s += max((step.after_s for step in found.steps), default=0.0) + 3600.0
        assert plan(desired, observed, at_s).actions == ()
        assert forecast(desired, observed, at_s).steps == ()
