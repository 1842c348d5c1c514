"""Unit files, purely: from bytes to tables, and from tables of all files to what is wanted. Nothing here does I/O."""
