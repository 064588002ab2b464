# SPDX-License-Identifier: Apache-2.0
"""Logins in addresses (``https://user:password@host/…``): kept out of messages and logs, and sent where they belong.

A password may have any character. In a registry's reference (``oci://``) it may even have a slash, which RFC 3986
forbids in a login.
"""

import re
from urllib.parse import urlsplit

_REGISTRY = "oci://"
_LOGIN = re.compile(r"://[^/\s]*@")


def without_login(address: str) -> str:
    """One address, for messages: everything from its ``//`` to its last ``@`` is ``…``. Other text stays as it is."""
    start, end = address.find("//"), address.rfind("@")
    return f"{address[:start]}//…{address[end:]}" if 0 <= start < end else address


def without_logins(text: str) -> str:
    """Text of any program, for logs: the logins in all of its addresses are ``…``. Takes linear time."""
    return "\n".join(map(_of_line, text.split("\n")))


def _of_line(line: str) -> str:
    # Two searches, because a pattern would try each oci:// again.
    start, end = line.find(_REGISTRY), line.rfind("@")
    if 0 <= start < end:
        return f"{_LOGIN.sub('://…@', line[:start])}{_REGISTRY}…{line[end:]}"
    return _LOGIN.sub("://…@", line)


def split_login(uri: str) -> tuple[str, str]:
    """An http(s) URI without its login, and that login (``user:password``, percent-encoded), empty if it has none."""
    parts = urlsplit(uri)
    login, _, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=host).geturl(), login
