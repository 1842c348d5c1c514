"""QEMU's command line, from a spec."""
