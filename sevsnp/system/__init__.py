"""What everything else stands on: processes, files, progress, locks, the terminal, YAML."""
