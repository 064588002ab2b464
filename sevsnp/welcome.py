"""What a bare `doit` says: nothing is built by accident."""

_TEXT = """\
openend2e-sevsnp: from a Linux root filesystem to a verified AMD SEV-SNP guest

  ./doitw list                 the tasks
  ./doitw e2e                  all of it: build, boot with measured boot, verify, log in, shut down
  ./doitw setup_verity         the verified root and its VM configs, in build/verity
  ./doitw run_sev_snp_verity   boot it (PLATFORM=auto: SEV-SNP where the host can, else emulated)
  ./doitw attest_verity        verify it from outside, before any login
  ./doitw help TASK            one task; settings are NAME=value words, see config.yaml
"""


def welcome() -> None:
    print(_TEXT, end="")
