"""What a user does with the guests on this machine: attest, look, detach, log in, stop."""
