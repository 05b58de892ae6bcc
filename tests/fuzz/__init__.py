"""Malformed inputs by the hundred: each must end in a clear error or in a right answer."""
