# SPDX-License-Identifier: Apache-2.0
"""Evidence, endorsements and their verification (RFC 9334 terms, AMD 56860 formats)."""
