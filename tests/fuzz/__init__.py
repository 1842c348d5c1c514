"""A hundred thousand mutated unit files, and random sets of them."""
