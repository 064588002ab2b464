"""build/bin: the tools that a user calls by name."""

import shlex
import shutil
from pathlib import Path

_WRAPPER = """\
#!/bin/sh
# {name}, in the project's environment.
# -P: no module is taken from the directory it is called in, where a host's evidence may lie.
exec env PYTHONPATH={project} {python} -P -m {module} "$@"
"""


def make_tools(
    *,
    get_report_source: Path,
    project: str,
    python: str,
    get_report: Path,
    verify_report: Path,
    verify_report_emulated: Path,
) -> None:
    """Write the tools: get_report is one file for a bare python3; the verifiers run in this project's environment."""
    shutil.copyfile(get_report_source, get_report)
    for target, module in (
        (verify_report, "sevsnp.attestation.cli"),
        (verify_report_emulated, "sevsnp.emulation.cli"),
    ):
        words = {"name": target.name, "project": shlex.quote(project), "python": shlex.quote(python)}
        target.write_text(_WRAPPER.format(module=module, **words))
    for target in (get_report, verify_report, verify_report_emulated):
        target.chmod(0o755)
