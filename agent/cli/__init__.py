"""The operator's command, `vmhost`: it asks the agent over its socket and draws what it answers."""
