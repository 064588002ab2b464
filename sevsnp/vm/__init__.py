"""What is launched and how: VM config, QEMU, platforms."""
