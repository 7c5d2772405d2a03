"""The loop and the data that travels between its hooks."""
