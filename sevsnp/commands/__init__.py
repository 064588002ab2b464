"""The commands in build/bin, a module each."""
