"""What the agent tells of itself: metrics, health, events and logs. Nothing here decides anything."""
