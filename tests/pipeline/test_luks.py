# SPDX-License-Identifier: Apache-2.0
"""The encrypted image: what setup_luks makes, when it makes it anew, and that the appliance's own kernel reads it."""

import base64
import hashlib
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sevsnp.archives.tar import read_tar
from sevsnp.errors import UserError
from sevsnp.images.luks import format_options, image_size
from sevsnp.images.luks2 import HEADER_SIZE, Luks2, opens
from sevsnp.keys import luks_key
from sevsnp.keys.pairs import certificate_der
from sevsnp.qemu.appliance import Appliance, ApplianceDisk, run_job
from sevsnp.qemu.process import check_files
from sevsnp.vm_config.config import read_vm_config
from sevsnp.volumes.directory import CONFIGS, Source, Volume
from tests.conftest import Built
from tests.support.appliance_of_tests import appliance_with_probe
from tests.support.copies import copy_built, copy_with_keys, ran
from tests.support.luks_ground import write_small_root
from tests.support.luks_mutations import MUTATIONS
from tests.support.luks_volume import Volume as Header

MIB = 1 << 20
FREE = 16 * MIB  # as in the shared build
ALL = {"luks image", "luks cmdline", "luks cmdline emulated", "luks config", "luks config emulated"}
FILES = ("usr/lib/os-release", "etc/passwd", "usr/bin/sudo")


@dataclass(frozen=True)
class Small(Built):
    """One whose encrypted root has next to nothing in it: most of the time that it takes is the appliance's start."""

    def environment(self, **variables: str) -> dict[str, str]:
        return super().environment(**{"IMAGE": str(self.project.parent / "root.tar"), **variables})


@pytest.fixture(scope="module")
def made(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """A copy of the project with its encrypted image, whose key was made."""
    directory = tmp_path_factory.mktemp("luks")
    copy = copy_with_keys(built, directory)
    yield copy
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def small(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """One with a volume of its own, for what does not depend on the root's size."""
    directory = tmp_path_factory.mktemp("small")
    shutil.copytree(built.config_dir, directory / "config")
    write_small_root(directory / "root.tar")
    copy = Small(copy_built(built, directory / "project").project, directory / "config")
    shutil.rmtree(copy.build / "luks", ignore_errors=True)
    setup(copy)
    yield copy
    shutil.rmtree(directory, ignore_errors=True)


def setup(copy: Built, *words: str) -> str:
    return copy.doit("setup_luks", f"LUKS_FREE={FREE}", *words).stdout


@pytest.fixture(scope="module")
def appliance(made: Built, tmp_path_factory: pytest.TempPathFactory) -> Appliance:
    return appliance_with_probe(made, tmp_path_factory.mktemp("appliance"))


def luks(made: Built, name: str) -> Path:
    return made.build / "luks" / name


def made_key(made: Built) -> bytes:
    return luks_key.read_made_key(made.config_dir, Luks2.read(luks(made, "luks.img")).uuid).data


def test_header_digests_and_command_lines_belong_to_this_image(made: Built) -> None:
    header = luks(made, "header.bin").read_bytes()
    with luks(made, "luks.img").open("rb") as image:
        assert image.read(HEADER_SIZE) == header
    assert len(header) == HEADER_SIZE
    digest = luks(made, "header.sha256").read_text()
    tables = luks(made, "tables.sha256").read_text()
    assert digest == hashlib.sha256(header).hexdigest() + "\n"
    owner = base64.b64encode(certificate_der(made.keys.owner_certificate)).decode()
    for platform in ("", ".emulated"):
        line = luks(made, f"cmdline{platform}").read_text().split(" ")
        own = [word for word in line if word.startswith("sevsnp.")]
        assert own[:4] == [
            "sevsnp.mode=luks",
            f"sevsnp.luks=1:{HEADER_SIZE}:{digest.strip()}:{tables.strip()}",
            "sevsnp.rootfs=ext4",
            f"sevsnp.owner={owner}",
        ]
        assert own[4:] == ["sevsnp.emulated=1"] * bool(platform)
        config = read_vm_config(luks(made, f"vm-config-luks{platform}.toml"))
        assert config.launch.workflow == "luks"
        assert [disk.role for disk in config.launch.disks] == ["luks"]
        assert config.launch.cmdline.sha256 == hashlib.sha256(luks(made, f"cmdline{platform}").read_bytes()).hexdigest()


def test_the_header_has_the_requested_parameters(made: Built) -> None:
    """Every field that decides how data is protected, so that no new version of cryptsetup changes one unnoticed."""
    metadata = Luks2.read(luks(made, "luks.img")).metadata
    (slot,), (segment,), (digest,) = (metadata[name].values() for name in ("keyslots", "segments", "digests"))
    assert (slot["key_size"], slot["af"]["stripes"], slot["kdf"]["type"]) == (96, 4000, "pbkdf2")
    assert (slot["area"]["encryption"], slot["area"]["key_size"]) == ("aes-xts-plain64", 64)
    assert {name: segment[name] for name in ("type", "offset", "encryption", "sector_size")} == {
        "type": "crypt",
        "offset": str(HEADER_SIZE),
        "encryption": "aes-xts-random",
        "sector_size": 4096,
    }
    assert segment["integrity"]["type"] == "hmac(sha256)"
    assert metadata["tokens"] == {} and "flags" not in metadata["config"] and "requirements" not in metadata["config"]
    assert digest["keyslots"] == ["0"] and digest["segments"] == ["0"]


def test_a_generated_key_is_private_and_opens_the_image(built: Built, made: Built) -> None:
    header = luks(made, "header.bin").read_bytes()
    volume = Luks2.parse(header).uuid
    key = made_key(made)
    assert len(key) == 32 and opens(header, key) and not opens(header, bytes(32))
    place = str(luks(built, "luks.img"))  # it was made there, and copied with its key
    assert luks_key.read_record(made.config_dir, volume) == luks_key.Record("made", 0, False, place=place)
    for path in (made.config_dir / "volumes").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_of_the_root_is_readable_in_the_image(made: Built) -> None:
    needles = [b"/bin/bash", b"systemd", b"root:x:0:0", b"\x7fELF\x02\x01\x01"]
    plain, image = made.build / "verity" / "verity.img", luks(made, "luks.img")
    found = {}
    for path in (plain, image):
        data = path.read_bytes()
        found[path] = [needle for needle in needles if needle in data]
    assert found[plain] == needles, "they are there to be found"
    # Four bytes of ELF may come up by chance in a hundred megabytes; seven and more do not.
    assert found[image] == []


@pytest.mark.full
def test_the_guest_s_kernel_reads_the_image_with_the_requested_free_space(
    made: Built, appliance: Appliance, tmp_path: Path
) -> None:
    copy = tmp_path / "luks.img"
    shutil.copyfile(luks(made, "luks.img"), copy)
    arguments = {"what": "open", "files": list(FILES), "wrong": "00" * 32}
    found = run_job(appliance, "probe", arguments, disks=[ApplianceDisk("luks", copy)], secret=made_key(made))
    assert found["tables"] + "\n" == luks(made, "tables.sha256").read_text()
    assert 0 < copy.stat().st_size - found["read"] < found["read"] * 4 // 100 + 4 * MIB
    assert FREE <= found["free"] <= FREE + 16 * MIB
    tree = read_tar(made.build / "guest" / "rootfs.tar")
    for name in FILES:
        content = tree[name].content
        assert content is not None
        assert found[name] == hashlib.sha256(b"".join(content.pieces())).hexdigest()
    # The root is written to from then on, and opened again; by no other key.
    assert found["written"] == hashlib.sha256(bytes(MIB)).hexdigest()
    assert "exit code 2: No key available with this passphrase" in found["wrong key"]


@pytest.mark.full
def test_an_altered_sector_is_an_error(small: Built, appliance: Appliance, tmp_path: Path) -> None:
    copy = tmp_path / "luks.img"
    shutil.copyfile(luks(small, "luks.img"), copy)
    arguments = {"what": "open", "files": [], "wrong": ""}
    disks = [ApplianceDisk("luks", copy)]
    with copy.open("r+b") as stream:
        # In the data of the first area: behind header, superblock, journal and the first run of tags.
        stream.seek(copy.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, 1)
        stream.write(bytes([byte[0] ^ 1]))
    with pytest.raises(UserError, match=r"OSError|Input/output error"):
        run_job(appliance, "probe", arguments, disks=disks, secret=made_key(small))


@pytest.mark.full
def test_the_computed_size_is_large_enough_and_little_more(appliance: Appliance, tmp_path: Path) -> None:
    sizes = {"small": 8 * MIB, "area": 16 * MIB, "odd": 777 * MIB + 4096, "large": 65 * 1024 * MIB}
    disks = []
    for role, size in sizes.items():
        with (tmp_path / role).open("wb") as stream:
            stream.truncate(image_size(size))
        disks.append(ApplianceDisk(role, tmp_path / role))
    options = format_options(str(uuid.uuid4()), "made")
    arguments = {"what": "rooms", "roles": list(sizes), "options": options}
    found = run_job(appliance, "probe", arguments, disks=disks, secret=bytes(32))
    for role, size in sizes.items():
        assert size <= found[role] <= size + 2 * MIB + size // 1000, role


@pytest.mark.full
def test_the_image_is_made_again_only_if_the_given_key_does_not_open_it(small: Built, tmp_path: Path) -> None:
    assert ran(setup(small)) == set()
    key = tmp_path / "key"
    key.write_bytes(b"\0a key of\nthe user's own\xff")
    key.chmod(0o600)
    before = Luks2.read(luks(small, "luks.img")).uuid
    assert ran(setup(small, f"LUKS_KEY_FILE={key}")) == ALL
    after = Luks2.read(luks(small, "luks.img"))
    assert after.uuid != before and opens(after.data, key.read_bytes())
    assert after.metadata["keyslots"]["0"]["kdf"]["type"] == "argon2id"
    assert luks_key.read_record(small.config_dir, after.uuid).key == "given"
    assert not luks_key.key_path(small.config_dir, after.uuid).exists()
    assert not luks_key.key_path(small.config_dir, before).exists(), "no guest ever had it"
    # The same key, and none at all: nothing to do.
    assert ran(setup(small, f"LUKS_KEY_FILE={key}")) == set()
    assert ran(setup(small)) == set()


def test_a_bad_or_missing_key_file_is_refused_before_anything_is_made(made: Built, tmp_path: Path) -> None:
    image = luks(made, "luks.img").stat()
    key = tmp_path / "key"
    key.write_bytes(b"key")
    key.chmod(0o644)
    for path, said in ((key, "chmod 600"), (tmp_path / "none", "No such file")):
        done = made.doit("setup_luks", f"LUKS_FREE={FREE}", f"LUKS_KEY_FILE={path}", check=False)
        assert done.returncode != 0 and said in done.stdout and "Traceback" not in done.stdout
    assert luks(made, "luks.img").stat() == image


def test_a_key_on_the_command_line_is_refused_and_not_printed(made: Built) -> None:
    done = made.doit("setup_luks", "LUKS_KEY=canary", check=False)
    assert done.returncode != 0 and "command line" in done.stdout
    assert "canary" not in done.stdout


def test_the_artefact_cache_does_not_have_the_image(made: Built, artefact_cache: Path) -> None:
    volume = Luks2.read(luks(made, "luks.img")).uuid
    image = hashlib.sha256(luks(made, "luks.img").read_bytes()).hexdigest()
    found = [path for path in artefact_cache.rglob("*") if image in path.name or volume in path.name]
    for path in (artefact_cache / "entries").rglob("*"):
        if path.is_file() and any(text in path.read_bytes() for text in (b"make_luks", image.encode(), b"luks.img")):
            found.append(path)
    assert found == []
    # The verified root's entry is found in this way.
    entries = [path for path in (artefact_cache / "entries").rglob("*") if path.is_file()]
    assert any(b"make_verity_root" in path.read_bytes() for path in entries)


def written_at(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@pytest.mark.full
def test_a_new_volume_keeps_the_volume_that_a_guest_has_written_to(small: Built, tmp_path: Path) -> None:
    """Its disk, key and record stay; those of a replaced volume that no guest ever used are removed."""
    # A new one: the volume that is there may have a key that was given, which no file here has.
    shutil.rmtree(small.build / "luks")
    assert "luks image" in ran(setup(small))
    data = str(tmp_path / "data")
    source = Source(small.build / "luks", small.build / "luks")
    written = Volume.of(tmp_path / "data", source.uuid)
    written.make(source)
    before = {path: written_at(path) for path in written.path.rglob("*")}
    done = small.doit("setup_luks", f"LUKS_FREE={FREE + MIB}", DATA_DIR=data)
    assert "luks image" in ran(done.stdout)
    replaced = source.uuid
    assert replaced != written.uuid and luks_key.key_path(small.config_dir, replaced).exists()
    assert {path: written_at(path) for path in written.path.rglob("*")} == before
    assert "luks image" in ran(small.doit("setup_luks", f"LUKS_FREE={FREE}", DATA_DIR=data).stdout)
    assert not {replaced} & set(luks_key.known_volumes(small.config_dir))
    assert luks_key.key_path(small.config_dir, written.uuid).exists()
    assert luks_key.read_record(small.config_dir, written.uuid).key == "made"


@pytest.mark.full
def test_a_key_that_an_emulated_guest_had_is_replaced_by_the_printed_command(small: Built) -> None:
    """Each printed command is run as it is. No guest runs here, so ./doitw attest_luks ends without an answer."""
    setup(small)
    header = luks(small, "header.bin")
    first = Luks2.read(header).uuid
    luks_key.update_record(small.config_dir, first, exposed=True)
    assert ran(setup(small)) == set(), "nobody said that it is for SEV-SNP"
    refused = small.doit("attest_luks", "PORT=1", check=False).stdout
    assert "this volume's key was sent to an emulated guest" in refused
    forgotten, anew = re.findall(r"\./doitw ([a-z_]+ PLATFORM=[a-z]+)", refused)
    assert "127.0.0.1:1: no answer" in small.doit(*forgotten.split(), "PORT=1", check=False).stdout
    assert "luks image" in ran(small.doit(*anew.split(), f"LUKS_FREE={FREE}").stdout)
    assert Luks2.read(header).uuid != first
    assert "127.0.0.1:1: no answer" in small.doit("attest_luks", "PORT=1", check=False).stdout
    assert ran(small.doit(*anew.split(), f"LUKS_FREE={FREE}").stdout) == set()
    assert luks_key.read_record(small.config_dir, first).exposed, "a guest may have data there"


@pytest.mark.full
def test_adopt_luks_accepts_a_disk_without_the_files_of_setup_luks(small: Built, tmp_path: Path) -> None:
    """It finds out by itself what setup_luks knew, and does not change the disk. A changed disk is refused."""
    setup(small)
    data, config = str(tmp_path / "data"), small.config_dir
    disk, tables = tmp_path / "luks.img", luks(small, "tables.sha256").read_text()
    shutil.copyfile(luks(small, "luks.img"), disk)
    header = Luks2.read(disk)
    volume = Volume.of(tmp_path / "data", header.uuid)
    aside = (small.build / "luks").rename(tmp_path / "aside")
    try:
        before = hashlib.sha256(disk.read_bytes()).hexdigest()
        changed = tmp_path / "changed.img"
        shutil.copyfile(disk, changed)
        with changed.open("r+b") as stream:
            stream.write(MUTATIONS["other first number"](Header(header.data, b"", b"")))
        refused = small.doit("adopt_luks", f"IMAGE={changed}", check=False, DATA_DIR=data).stdout
        assert "not made by this project: segments/0/iv_tweak" in refused and not volume.path.exists()
        done = small.doit("adopt_luks", f"IMAGE={disk}", check=False, DATA_DIR=data)
        assert done.returncode == 0, done.stdout
        assert (volume.path / "tables.sha256").read_text() == tables
        assert hashlib.sha256(disk.read_bytes()).hexdigest() == before
        assert "VOLUME=" in small.doit("adopt_luks", f"IMAGE={disk}", check=False, DATA_DIR=data).stdout, (
            "once is enough"
        )
        # A newer kernel command line, without build/luks: the volume gets it, and only it.
        image = written_at(volume.image)
        done = small.doit("update_luks", "LUKS_REPORTS=open", DATA_DIR=data)
        assert "boots with what is built now" in done.stdout
        for name in CONFIGS:
            launch = read_vm_config(volume.path / name).launch
            check_files(launch, disks=False)
            assert "sevsnp.reports=open" in launch.cmdline.path.read_text()
        assert written_at(volume.image) == image and luks_key.key_path(config, volume.uuid).exists()
        assert "nothing to do" in small.doit("update_luks", "LUKS_REPORTS=open", DATA_DIR=data).stdout
    finally:
        aside.rename(small.build / "luks")
