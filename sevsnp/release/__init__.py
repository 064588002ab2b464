# SPDX-License-Identifier: Apache-2.0
"""Release files: a manifest of the built artefacts, its signature, the SBOM, and the host bundle."""
