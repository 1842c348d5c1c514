"""Pure decisions over immutable values; nothing here does I/O or asks for the time."""
