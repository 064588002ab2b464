"""Content hashes: what makes an artefact up to date."""
