"""What a notification says: one JSON document for commands and webhooks, and its main fields as an environment."""

from __future__ import annotations

from collections.abc import Mapping

from agent.core.tell.notifications import News, Notification
from agent.core.text import printable

MAX_MESSAGE = 1000
"""Characters: more of a message is cut."""

MAX_MORE = 100
"""How many further news a document lists; it counts all."""

FIELDS: Mapping[str, str] = {
    "version": "1; a field may be added without a new version",
    "host": "the host's name",
    "time": "when it went out, ISO 8601 in UTC",
    "resource": 'what it is about: "vm/web", "bridge/br-lan", "tap/web/lan", "unit/web.toml", "agent"',
    "type": "the condition's type, as `vmhost status` shows it",
    "reason": "the condition's reason; the id to approve for ApprovalNeeded",
    "state": '"problem", or "over" when it is gone',
    "message": "what, why and what to do, in one line",
    "text": "all of that in one line for a person, with what was summed up",
    "more": 'a list of what was summed up, each with "resource", "type", "reason", "state" and "message"; at most 100',
    "more_count": "how many were summed up in all",
    "passed": "how many problems came and went untold since the notification before",
}
"""The fields of the document; a promise to whoever reads them."""

ENVIRONMENT: Mapping[str, str] = {
    "VMHOST_HOST": "host",
    "VMHOST_RESOURCE": "resource",
    "VMHOST_TYPE": "type",
    "VMHOST_REASON": "reason",
    "VMHOST_STATE": "state",
    "VMHOST_MESSAGE": "message",
    "VMHOST_TEXT": "text",
    "VMHOST_MORE": "more_count",
}
"""The variables that a command finds, and the field that each of them holds."""


def document(notification: Notification, host: str, time: str) -> dict[str, object]:
    """The notification as plain data for JSON; `time` is ISO 8601."""
    return {
        "version": 1,
        "host": host,
        "time": time,
        **_plain(notification.news),
        "text": _text(notification, host),
        "more": [_plain(news) for news in notification.more[:MAX_MORE]],
        "more_count": len(notification.more),
        "passed": notification.passed,
    }


def environment(plain: Mapping[str, object]) -> dict[str, str]:
    """The main fields of a document as environment variables."""
    return {name: str(plain[key]) for name, key in ENVIRONMENT.items()}


def _plain(news: News) -> dict[str, object]:
    return {
        "resource": news.resource,
        "type": news.type,
        "reason": news.reason,
        "state": "over" if news.is_over else "problem",
        "message": printable(news.message)[:MAX_MESSAGE],
    }


def _text(notification: Notification, host: str) -> str:
    news = notification.news
    message = str(_plain(news)["message"])
    said = message if news.is_over else f"{news.type}: {message}"
    more = f"; and {len(notification.more)} more" if notification.more else ""
    passed = f"; {notification.passed} more came and went before" if notification.passed else ""
    return f"{news.resource} on {host}: {said}{more}{passed}"
