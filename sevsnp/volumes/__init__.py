"""Volumes that guests have written: user data, outside build/."""
