"""Measurements that a user can repeat: policies side by side on the same rows."""
