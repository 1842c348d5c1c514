"""How fast the agent is, each figure against its bare limit: `make bench`."""
