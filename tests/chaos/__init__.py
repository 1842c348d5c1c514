"""A storm of random faults over a real agent with real guests; `python -m tests.chaos --help`."""
