"""The guest's firmware: what an image contains, how ours is made, and which firmware a guest may start with."""
