#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Builds qemu-system-x86_64 with KVM and TCG, and without all that a guest of ours never uses.
#
# SOURCES  Debian's source files (qemu_*.orig.tar.xz, qemu_*.debian.tar.xz), or qemu.tar from git; and the
#          packages meson and python3-pycotap
# WORK     an empty directory
# OUT      where to install to, as DESTDIR
# JOBS     how many compilers run at once
# CONFIGURE_ONLY  yes: stop once ninja knows what it would do
set -euo pipefail

export LC_ALL=C.UTF-8 TZ=UTC SOURCE_DATE_EPOCH=1
unset CFLAGS CXXFLAGS CPPFLAGS LDFLAGS MAKEFLAGS PYTHONPATH PYTHONHOME
source=$WORK/source venv=$WORK/venv
mkdir -p "$source"

unpack() { tar --extract --file="$1" --directory="$2" --strip-components="$3" --no-same-owner; }

if [ -f "$SOURCES/qemu.tar" ]; then
    unpack "$SOURCES/qemu.tar" "$source" 1
else
    unpack "$SOURCES"/qemu_*.orig.tar.* "$source" 1
    unpack "$SOURCES"/qemu_*.debian.tar.* "$source" 0
    while read -r name _; do
        case $name in '' | '#'*) continue ;; esac
        patch --directory="$source" --strip=1 --quiet --forward --input="$source/debian/patches/$name"
    done <"$source/debian/patches/series"
fi

# configure wants meson and pycotap in its Python, in versions that not every distribution has. Both are plain Python.
python3 -m venv "$venv"
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
for package in "$SOURCES"/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar --extract --directory="$site" --strip-components=5 \
        --no-same-owner ./usr/lib/python3/dist-packages
done

mkdir "$WORK/build"
cd "$WORK/build"
"$source/configure" \
    --python="$venv/bin/python" \
    --target-list=x86_64-softmmu \
    --prefix=/usr \
    --without-default-features \
    --enable-system \
    --enable-kvm \
    --enable-tcg \
    --enable-slirp \
    --enable-seccomp \
    --enable-fdt=system \
    --disable-download \
    --disable-install-blobs \
    --disable-docs
ninja -n >/dev/null
[ "${CONFIGURE_ONLY:-no}" != yes ] || exit 0

ninja -j "${JOBS:-1}"
DESTDIR=$OUT ninja install
test -x "$OUT/usr/bin/qemu-system-x86_64"
