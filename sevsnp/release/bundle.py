# SPDX-License-Identifier: Apache-2.0
"""Make the host bundle: all files that an untrusted host needs to run a workflow, and none that verification uses.

The bundle has the guest's files, launch files without reference values (production and emulated, or only production),
the code that launches, and its own Python, so a host needs only QEMU. It has no private key, no policy and no user's
name.
"""

import ast
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.system.command import run
from sevsnp.system.time_limits import seconds_for
from sevsnp.vm_config.config import Disk, File, Launch, VmConfig, read_vm_config, render_vm_config
from sevsnp.vm_config.relocate import relocated

_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_LOADER = f"{_LIBRARIES}/ld-linux-x86-64.so.2"
_PYTHON = "usr/lib/python3.*"
_PACKAGES = "usr/lib/python3/dist-packages"
_RUN_PY = """\
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here))
from sevsnp.host.bundle_run import main

sys.exit(main(sys.argv[1:], here.parent))
"""


def make_bundle(
    *,
    production: Path,
    emulated: Path | None = None,
    template: Path,
    run_script: Path,
    code: Sequence[Path],
    release: Path,
    output: Path,
) -> None:
    """Write the bundle directory ``output`` from the VM configs and the unpacked release tree.

    ``code`` are the sources of the launcher. Each is a path relative to the project's directory, and has the same path
    in the bundle. If ``emulated`` is None, the bundle has neither the code nor the guest files of the emulation. Raises
    UserError for a secret or a reference value in the bundle, and SyntaxError for a source that is not valid Python.
    """
    output.mkdir()
    copied: dict[Path, str] = {}
    for config, name in ((production, "launch.toml"), (emulated, "launch.emulated.toml")):
        if config is None:
            continue
        launch = _copy_files(read_vm_config(config).launch, output, copied)
        (output / name).write_text(render_vm_config(VmConfig((output / name).resolve(), launch, None), template))
    script = output / "run"
    script.write_text(run_script.read_text())
    script.chmod(0o755)
    _copy_code(code, output / "lib")
    _copy_python(release, output / "runtime")
    _check_no_secret(output)


def _copy_files(launch: Launch, output: Path, copied: dict[Path, str]) -> Launch:
    """Copy the files of a launch into ``output``, each file once, and return the launch of the copies."""

    def copy(file: File | Disk) -> Path:
        path = file.path
        if path not in copied:
            name = path.name
            if name in copied.values():
                raise UserError(f"{path}: a second file named {name} for the bundle")
            # A reflink if the file system supports it, because the images are large and do not change.
            limit = seconds_for(path.stat().st_size)
            run(["cp", "--reflink=auto", "--sparse=always", "--", path, output / name], timeout=limit)
            (output / name).chmod(0o644)
            copied[path] = name
        return (output / copied[path]).resolve()

    return relocated(launch, copy)


def _copy_code(code: Sequence[Path], library: Path) -> None:
    for source in code:
        # In a source that cannot be parsed no imports are found, so the bundle would lack them.
        ast.parse(source.read_bytes(), str(source))
        (library / source).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, library / source)
    (library / "run.py").write_text(_RUN_PY)


def _copy_python(release: Path, runtime: Path) -> None:
    """Python, its standard library and the cryptography package, with the shared libraries that they load."""
    (found,) = sorted(release.glob(_PYTHON + "[0-9]"))
    version = found.name
    for part in (f"usr/lib/{version}", f"{_PACKAGES}/cryptography"):
        shutil.copytree(release / part, runtime / part, symlinks=False, ignore=_ignored)
    for backend in (release / _PACKAGES).glob("_cffi_backend*.so"):
        shutil.copyfile(backend, runtime / _PACKAGES / backend.name)
    for name in ("bin/python3", "usr/bin/python3"):
        (runtime / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(release / name, runtime / name)
        (runtime / name).chmod(0o755)
    binaries = [runtime / "usr/bin/python3", *runtime.rglob("*.so")]
    libraries = _libraries(release, binaries)
    (runtime / _LIBRARIES).mkdir(parents=True)
    # Python looks for its library relative to the path of its start, which is bin/python3.
    (runtime / "lib").symlink_to("usr/lib")
    for library in [release / _LOADER, *libraries]:
        shutil.copyfile(library, runtime / _LIBRARIES / library.name)
        (runtime / _LIBRARIES / library.name).chmod(0o755)


def _ignored(directory: str, names: list[str]) -> set[str]:
    unwanted = {"__pycache__", "test", "idlelib", "tkinter", "ensurepip", "turtledemo", "pydoc_data"}
    return {name for name in names if name in unwanted or name.startswith("config-")}


def _libraries(release: Path, binaries: Iterable[Path]) -> list[Path]:
    """The shared libraries that the tree's own loader finds for ``binaries``."""
    names: set[str] = set()
    for binary in binaries:
        listing = run([release / _LOADER, "--library-path", release / _LIBRARIES, "--list", binary]).decode()
        names.update(re.findall(r"^\s*([^\s/]+) => \S", listing, re.MULTILINE))
    return [release / _LIBRARIES / name for name in sorted(names)]


def _check_no_secret(bundle: Path) -> None:
    """Refuse a bundle with a private key or a reference value, because the host gets the whole bundle."""
    for path in bundle.rglob("*"):
        if path.suffix == ".toml" and "[reference" in path.read_text():
            raise UserError(f"{path}: reference values in a host bundle")
        small = path.is_file() and path.suffix in (".pem", ".key", "") and path.stat().st_size < 1 << 16
        if small and b"PRIVATE KEY" in path.read_bytes():
            raise UserError(f"{path}: a private key in a host bundle")
