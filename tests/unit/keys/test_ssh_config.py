# SPDX-License-Identifier: Apache-2.0
"""The ssh configuration of a guest, as ssh itself reads it: the host keys that it accepts with and without evidence."""

from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.guests.local import login
from sevsnp.host.state import Run, held
from sevsnp.keys.ssh_config import write_ssh_config
from sevsnp.system.command import run
from tests.conftest import PROJECT


def as_ssh_reads_it(tmp_path: Path, *, vouched: bool) -> dict[str, str]:
    write_ssh_config(
        tmp_path / "ssh_config",
        template=PROJECT / "templates" / "ssh_config.j2",
        host="127.0.0.1",
        port=2222,
        user="user",
        identity=tmp_path / "my key",
        known_hosts=tmp_path / "known hosts",
        vouched=vouched,
    )
    lines = run(["ssh", "-G", "-F", tmp_path / "ssh_config", "guest"], timeout=60).decode().splitlines()
    return dict(line.partition(" ")[::2] for line in lines)


@pytest.mark.parametrize(("vouched", "first_key"), [(True, "true"), (False, "accept-new")])
def test_with_evidence_ssh_accepts_only_known_host_keys(tmp_path: Path, vouched: bool, first_key: str) -> None:
    found = as_ssh_reads_it(tmp_path, vouched=vouched)
    assert (found["stricthostkeychecking"], found["hostname"], found["port"]) == (first_key, "127.0.0.1", "2222")
    assert found["userknownhostsfile"].endswith("known hosts") and found["globalknownhostsfile"] == "/dev/null"
    assert (found["user"], found["identitiesonly"], found["passwordauthentication"]) == ("user", "yes", "no")
    assert found["identityfile"] == str(tmp_path / "my key")
    first = (tmp_path / "ssh_config").read_text().splitlines()[0]
    assert first.startswith("# NOT ATTESTED: ") != vouched


def test_the_login_of_a_plain_guest(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A disk of the user's own has no account known to us; for our disk the message names what is not verified."""
    with held(tmp_path / "guest", Run("plain", "emulated", "", 1, 2), ""):
        with pytest.raises(UserError, match="a disk image of yours") as refused:
            login(runs=tmp_path, name="guest")
        assert "not attested" not in capfd.readouterr().err
        assert refused.value.hint.endswith("ssh -p 1 ACCOUNT@127.0.0.1")
        (tmp_path / "guest" / "ssh_config").write_text("Host guest\n    ProxyCommand false\n")
        with pytest.raises(UserError, match="ssh: exit code 255"):
            login(runs=tmp_path, name="guest")
        assert "guest is not attested: nothing proves which guest answers" in capfd.readouterr().err
