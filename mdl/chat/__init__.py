"""The conversation in a terminal, and the one answer for a script."""
