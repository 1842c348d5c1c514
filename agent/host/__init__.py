"""Adapters: each wraps one part of the host, or one foreign library, and knows no other adapter."""
