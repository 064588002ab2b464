# SPDX-License-Identifier: Apache-2.0
"""Logs in to a registry with the credentials that `docker login` stored: a password, or a token obtained for it.

oras knows where credentials are and how to ask for tokens. This module adds the missing limits: the requests of oras go
through a session with time-outs, size limits and rules about hosts; credential helpers have a time limit; nothing is
logged.
"""

import base64
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import requests
from oras.auth.token import TokenAuth
from oras.logger import logger
from oras.utils import iter_localhosts

from sevsnp.errors import UserError
from sevsnp.store.oci_reference import Reference, Refused
from sevsnp.system.command import run

# A helper may have to ask a locked keyring, but no user is there to answer.
_HELPER_SECONDS = 20.0
_HELPER_NAME = re.compile("[A-Za-z0-9_.-]+")


def docker_config() -> Path:
    """The file in which `docker login` keeps its logins."""
    folder = os.environ.get("DOCKER_CONFIG")
    return (Path(folder) if folder else Path.home() / ".docker") / "config.json"


class Login(TokenAuth):  # type: ignore[misc]
    """The credentials for one registry, and the latest Authorization header that was obtained for them.

    ``session`` has requests' ``get`` and ``request``; it decides where passwords and tokens may go.
    """

    def __init__(self, reference: Reference, session: Any) -> None:
        logger.set_level(logging.CRITICAL)  # oras would print the words of the registry and the helpers unfiltered
        super().__init__()
        self.session, self.prefix, self._tls_verify = session, reference.scheme, True
        self._reference = reference
        self._looked_up = False
        self._trouble = ""
        self.authorization = ""

    def answer(self, response: requests.Response) -> None:
        """Renew :attr:`authorization` as a 401 response asks. Raises :class:`Refused` if that is not possible."""
        challenge = response.headers.get("WWW-Authenticate", "")
        self._look_up()
        if re.search(r"(?:^|,)\s*bearer\s", challenge, re.IGNORECASE):
            try:
                headers, changed = self.authenticate_request(response, {}, refresh=True)
            except (AttributeError, KeyError, TypeError, ValueError):  # a malformed challenge or token
                headers, changed = {}, False
            authorization = headers.get("Authorization", "") if changed else ""
        elif re.search(r"(?:^|,)\s*basic\b", challenge, re.IGNORECASE):
            password = getattr(self, "_basic_auth", "")
            authorization = f"Basic {password}" if password else ""
        else:
            authorization = ""
        if not authorization or not authorization.isascii() or not authorization.isprintable():
            raise self.refusal()
        self.authorization = authorization

    def refusal(self) -> Refused:
        """The error for a refused login, or for a missing one."""
        host = self._reference.host
        known = "the login in" if hasattr(self, "_basic_auth") else "needs a login, but found none in"
        trouble = f" ({self._trouble})" if self._trouble else ""
        what = "refuses " if hasattr(self, "_basic_auth") else ""
        return Refused(f"{self._reference}: {what}{known} {docker_config()}{trouble}; docker login {host}")

    def _look_up(self) -> None:
        """Find the credentials, once: in the configuration, or through the helper that the configuration names."""
        if self._looked_up:
            return
        self._looked_up = True
        path = docker_config()
        try:
            config = json.loads(path.read_bytes())
            # Never empty: oras would then look for its own.
            self._auth_config = {
                "auths": dict(config.get("auths") or {}),
                "credsStore": config.get("credsStore"),
                "credHelpers": dict(config.get("credHelpers") or {}),
            }
            for host in (each for name in self._reference.logins for each in iter_localhosts(name)):
                if self._load_auth(host):
                    break
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            self._trouble = error.strerror or "unreadable" if isinstance(error, OSError) else "not readable as JSON"

    def _get_auth_from_creds_store(self, suffix: str, hostname: str) -> str | None:
        """The user and password from a helper, encoded for basic authentication; None if the helper has none."""
        if not isinstance(suffix, str) or not _HELPER_NAME.fullmatch(suffix):
            self._trouble = "invalid name of a credential helper"
            return None
        helper = f"docker-credential-{suffix}"
        try:
            # Helpers need the user's session: a keyring's socket, a cloud's profile.
            session, host = dict(os.environ), hostname.encode()
            answer = run([helper, "get"], stdin=host, env=session, timeout=_HELPER_SECONDS, secret=True)
            found = json.loads(answer)
            return base64.b64encode(f"{found['Username']}:{found['Secret']}".encode()).decode()
        except UserError:
            self._trouble = f"{helper} gives no login"
        except (ValueError, KeyError, TypeError):
            self._trouble = f"{helper} gives no login in the expected form"
        return None
