# SPDX-License-Identifier: Apache-2.0
"""Characters for generated text."""

from hypothesis import strategies as st

# All that UTF-8 can encode. With codec="utf-8", the default of st.text(), each process of a clean clone first encodes
# every character there is, which takes seconds.
UNICODE = st.characters(exclude_categories=["Cs"])


def unicode_without(characters: str) -> st.SearchStrategy[str]:
    """UNICODE without these characters."""
    return st.characters(exclude_categories=["Cs"], exclude_characters=characters)
