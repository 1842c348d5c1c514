"""The firewall, NAT, published ports and what the kernel forwards."""
