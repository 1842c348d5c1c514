"""The frontier, thing by thing: what `agent.core.planning` puts together."""
