# SPDX-License-Identifier: Apache-2.0
"""A job of the tests' own appliance: runs a shell script as root, with the job's disks in variables named by role.

A script may call `untar DEVICE DIRECTORY` and `setxattr NAME HEXVALUE FILE`. Its output is the result.
"""

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from typing import Any

MODULES = ("luks", "appliance")


def run(job: "dict[str, Any]", secret: bytes, say: "Callable[..., None]") -> "dict[str, Any]":
    import linux  # the appliance's module; as a script this file has no neighbours

    applets = "/run/applets"
    os.makedirs(applets)
    subprocess.run(["/usr/bin/busybox", "--install", "-s", applets], check=True)
    for name in ("untar", "setxattr"):
        with open(f"{applets}/{name}", "w", encoding="ascii") as stream:
            stream.write(f'#!{applets}/sh\nexec /usr/bin/python3 -ISB {__file__} {name} "$@"\n')
        os.chmod(f"{applets}/{name}", 0o755)
    variables = dict(zip(job["roles"], linux.find_disks(*job["roles"]), strict=True))
    done = subprocess.run(
        [f"{applets}/sh", "-euxc", job["script"]],
        env={"PATH": f"/usr/sbin:/usr/bin:{applets}", "DM_DISABLE_UDEV": "1", **variables},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise linux.Stop(f"exit code {done.returncode}: {done.stdout[-2000:]}{done.stderr[-3000:]}")
    return {"printed": done.stdout}


def untar(device: str, directory: str) -> None:
    with open(device, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            archive.extract(member, directory, numeric_owner=True, filter="fully_trusted")
            for key, value in member.pax_headers.items():
                if key.startswith("SCHILY.xattr."):
                    os.setxattr(
                        os.path.join(directory, member.name),
                        key[len("SCHILY.xattr.") :],
                        value.encode("utf-8", "surrogateescape"),
                    )


if __name__ == "__main__":
    if sys.argv[1] == "untar":
        untar(*sys.argv[2:])
    else:
        os.setxattr(sys.argv[4], sys.argv[2], bytes.fromhex(sys.argv[3]))
