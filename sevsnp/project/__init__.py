"""The project itself: its picture, its tests, and what it needs of the machine."""
