"""The only place that sequences I/O: it looks, has the core decide, and carries out."""
