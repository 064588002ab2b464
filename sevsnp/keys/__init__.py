"""Keys on the owner's machine: where they are, how they are made, and signatures with them."""
