# SPDX-License-Identifier: Apache-2.0
"""The certificate authorities that HTTPS connections of this machine trust: a company's own among them.

The library `requests` ships a list of public authorities and knows no other. A company's proxy or mirror has a
certificate of the company's own authority, which its machines have in their system's trust store.
"""

import os
import ssl
from pathlib import Path

# Where distributions keep all authorities in one file, if OpenSSL's own default names none.
_FILES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
          "/etc/ssl/cert.pem")  # fmt: skip


def authorities() -> str | bool:
    """What `requests` takes as ``verify``: a file or a directory of authorities; True for the list that it ships.

    REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE come first: `requests` reads them by itself if ``verify`` is True. Then come
    OpenSSL's SSL_CERT_FILE and SSL_CERT_DIR, and then the system's store.
    """
    if os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE"):
        return True
    # The two variables come before OpenSSL's defaults; a file or directory that does not exist is None here.
    paths = ssl.get_default_verify_paths()
    if paths.cafile:
        return paths.cafile
    if os.environ.get("SSL_CERT_DIR") and paths.capath:
        return paths.capath
    return next((name for name in _FILES if Path(name).is_file()), True)
