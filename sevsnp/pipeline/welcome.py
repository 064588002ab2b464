# SPDX-License-Identifier: Apache-2.0
"""The text of a bare `./doitw`, and of `./doitw help` before its list of commands: nothing is built by accident."""

WELCOME = """\
openend2e-sevsnp: from a Linux root filesystem to a verified AMD SEV-SNP guest

  ./doitw e2e                    all of it: set up, build, boot with measured boot, verify, log in, shut down

or step by step:

  ./doitw setup_verity           build the verified root and its VM configs, in build/verity
  ./doitw run_sev_snp_verity     boot it (PLATFORM=auto: SEV-SNP where the host can, else emulated)
  ./doitw attest_verity          in a second terminal: verify it before any login (PLATFORM=emulated if it is)
  ./doitw ssh                    log in

The same with an encrypted root: setup_luks, run_sev_snp_luks, attest_luks.

  ./doitw list                   all tasks, in the order in which they are used
  ./doitw help TASK              one task: what it does, its settings, what it makes, what comes next
  ./doitw settings               all settings and their values: NAME=value words, or lines in config.yaml
  ./doitw help                   this, and the commands of doit beside the tasks
"""


def welcome() -> None:
    print(WELCOME, end="")
