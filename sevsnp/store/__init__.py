# SPDX-License-Identifier: Apache-2.0
"""Content hashes: what makes an artefact up to date."""
