#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Builds OVMF.fd from a source tree of edk2 that sevsnp/firmware/source.py has prepared (unpacked, patched, changed).
#
# SOURCES  the prepared tree; only read
# WORK     a directory for everything that is built
# OUT      the file to write
# JOBS     how many compilers run at once; 1 if unset
# CONFIGURE_ONLY  yes: stop once edk2's own tools are built
#
# Needs bash, gcc, libc6-dev, make, nasm, iasl, python3 and uuid-dev. Uses no network.
set -euo pipefail

for name in SOURCES WORK OUT; do
    [ -n "${!name:-}" ] || { echo "ovmf.sh: $name is not set" >&2; exit 2; }
done
[ -f "$SOURCES/OvmfPkg/AmdSev/AmdSevX64.dsc" ] || { echo "ovmf.sh: $SOURCES: no source tree of edk2" >&2; exit 2; }
for program in gcc make nasm iasl python3; do
    command -v "$program" >/dev/null || { echo "ovmf.sh: $program: command not found" >&2; exit 2; }
done
jobs=${JOBS:-1}

# What is in the caller's environment must not change the result.
unset CFLAGS CXXFLAGS CPPFLAGS LDFLAGS MAKEFLAGS MFLAGS MAKELEVEL CC CXX GCC5_BIN GCC_BIN NASM_PREFIX IASL_PREFIX
unset PYTHONPATH PYTHONHOME EDK_TOOLS_PATH
export LC_ALL=C.UTF-8 TZ=UTC PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1 SOURCE_DATE_EPOCH=1
umask 022

# A program's image has room for the name of the file from which it was made, although the name itself is left out. So
# the length of the directory's name is part of the result: the build sees it under a name of always the same length.
# The name is the same for the next build in the same directory, since a compiler cache knows files by their names.
mkdir -p "$WORK" /tmp
real=$(cd "$WORK" && pwd -P)
place=/tmp/$(printf '%s' "$real" | sha256sum | cut -c 1-4)
if [ -O "$place" ] && [ "$(readlink "$place/w")" = "$real" ]; then
    rm -rf "$place"  # a killed build of ours left it
fi
mkdir -m 700 "$place" 2>/dev/null || place=$(mktemp -d /tmp/XXXX)
trap 'rm -rf "$place"' EXIT
ln -s "$real" "$place/w"
WORK=$place/w
rm -rf "$WORK/Conf" "$WORK/Build" "$WORK/BaseTools"
mkdir "$WORK/Conf"
tools=$WORK/BaseTools
cp -R "$SOURCES/BaseTools" "$tools"
chmod +x "$tools"/BinWrappers/PosixLike/*
# Only the tools that this platform needs. The others want a C++ compiler, or sources that Debian does not have.
make -s -C "$tools/Source/C" -j "$jobs" HOST_ARCH=X64 EDK2_PATH="$SOURCES" \
    APPLICATIONS="GenFfs GenFv GenFw GenSec LzmaCompress" VFRAUTOGEN=
for name in build_rule tools_def target; do
    cp "$SOURCES/BaseTools/Conf/$name.template" "$WORK/Conf/$name.txt"
done

[ "${CONFIGURE_ONLY:-no}" != yes ] || exit 0

export WORKSPACE=$WORK PACKAGES_PATH=$SOURCES EDK_TOOLS_PATH=$tools CONF_PATH=$WORK/Conf PYTHON_COMMAND=python3
export PYTHONPATH=$tools/Source/Python PATH=$tools/BinWrappers/PosixLike:$PATH
cd "$WORK"
python3 "$tools/Source/Python/build/build.py" -a X64 -t GCC -b RELEASE -n "$jobs" -q -p OvmfPkg/AmdSev/AmdSevX64.dsc

made=$WORK/Build/AmdSev/RELEASE_GCC/FV/OVMF.fd
[ -s "$made" ] || { echo "ovmf.sh: the build ended without $made" >&2; exit 1; }
mkdir -p "$(dirname "$OUT")"
cp "$made" "$OUT.new"
mv "$OUT.new" "$OUT"
