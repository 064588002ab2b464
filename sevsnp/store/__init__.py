# SPDX-License-Identifier: Apache-2.0
"""Artefacts, the content hashes that decide whether they are up to date, and the artefact cache."""
