"""What breaks guests though our own state is right."""
