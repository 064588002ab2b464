# SPDX-License-Identifier: Apache-2.0
"""The most similar known word for an unknown word."""

from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """The word in ``known`` that is most similar to ``word``, or an empty string if none is. Case does not count."""
    import difflib  # loaded only after a mistake

    by_folded = {one.casefold(): one for one in known}
    found = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[found[0]] if found else ""


def did_you_mean(word: str, known: Iterable[str], form: str = "{}") -> str:
    """``did you mean SETUP?``, with the nearest word in ``form``; empty if no word is near."""
    found = nearest(word, known)
    return f"did you mean {form.format(found)}?" if found else ""
