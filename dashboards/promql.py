"""Expressions in PromQL as dashboards write them: within the hosts and guests that are chosen above the panels."""

from __future__ import annotations

from agent.core.tell.vm_display import DisplayState

STATE_CODES = {state.value: code for code, state in enumerate(DisplayState, 1)}
"""A guest's state as a number, for panels that show one series for each guest; the panel writes the word again."""


def on_host(metric: str, *matchers: str) -> str:
    """The series of a metric on the chosen hosts."""
    labels = ", ".join(('instance=~"$instance"', *matchers))
    return f"vmhost_{metric}{{{labels}}}"


def of_guest(metric: str, *matchers: str) -> str:
    """The series of a metric of the chosen guests."""
    return on_host(metric, 'vm=~"$vm"', *matchers)


def rate(series: str) -> str:
    """By how much a counter grows, each second."""
    return f"rate({series}[$__rate_interval])"


def increase(series: str) -> str:
    """By how much a counter grew, from one point of the panel to the next."""
    return f"increase({series}[$__rate_interval])"


def total(expression: str, *by: str) -> str:
    """The sum over all labels but these."""
    return f"sum by ({', '.join(by)}) ({expression})"


def quantile(share: float, buckets: str, *by: str) -> str:
    """A quantile of a histogram, of what happened since the former point; no number where nothing happened."""
    return f"histogram_quantile({share:g}, {total(rate(buckets), *by, 'le')})"


def mean(histogram: str, *by: str) -> str:
    """The mean of a histogram (`vmhost_name{…}`) over what happened since the former point."""
    name, brace, labels = histogram.partition("{")
    sums, counts = (f"{name}_{part}{brace}{labels}" for part in ("sum", "count"))
    return f"{total(rate(sums), *by)} / {total(rate(counts), *by)}"


def heat(buckets: str) -> str:
    """What a heatmap is drawn of: how often each bin of a histogram was hit."""
    return total(increase(buckets), "le")


def state_code(state: str) -> str:
    """One series for each guest, of `STATE_CODES`. `state` is the selector of `vm_state`, up to its closing brace."""
    selector = state.removesuffix("}")
    words = (f'{selector}, state="{word}"}} * {code}' for word, code in STATE_CODES.items())
    return total(" or ".join(words), "instance", "vm")
