"""Evidence, endorsements and their verification (RFC 9334 terms, AMD 56860 formats)."""
