"""vmhost: keeps a host's bridges, taps and QEMU guests as its unit files say."""
