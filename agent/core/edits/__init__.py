"""What editing a key does, and what of an edit a running guest can take over."""
