"""The model host: what each action makes of the world, with its preconditions."""
