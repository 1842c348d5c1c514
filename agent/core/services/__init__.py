"""Supervised programs beside the guests."""
