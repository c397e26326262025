"""A character-level language model on the documentation that ships with Python."""
