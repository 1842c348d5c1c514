"""`make demo`: the agent in a network namespace of its own, and one fault after the other, healed before your eyes."""
