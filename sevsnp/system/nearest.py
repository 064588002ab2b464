# SPDX-License-Identifier: Apache-2.0
"""What was probably meant by a word that is not known."""

from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """The one of ``known`` that is most like ``word``, or an empty string where none is. Case does not count."""
    import difflib  # only for who has made a mistake

    by_folded = {one.casefold(): one for one in known}
    found = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[found[0]] if found else ""


def did_you_mean(word: str, known: Iterable[str], form: str = "{}") -> str:
    """``did you mean SETUP?``, with the nearest in ``form``; empty where nothing is near."""
    found = nearest(word, known)
    return f"did you mean {form.format(found)}?" if found else ""
