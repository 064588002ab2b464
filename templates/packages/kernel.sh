#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Builds a kernel package for SEV-SNP from Debian's configuration.
#
# SOURCES  linux_*.orig.tar.xz, or FLAVOUR-kernel.tar from git; linux_*.debian.tar.xz for the configuration
# WORK     an empty directory
# OUT      the directory for linux-image-*.deb
# JOBS     how many compilers run at once
# FLAVOUR  host or guest
# CONFIGURE_ONLY  yes: stop once the configuration is complete and has what SEV-SNP needs
set -euo pipefail

export LC_ALL=C.UTF-8 TZ=UTC SOURCE_DATE_EPOCH=1
export KBUILD_BUILD_TIMESTAMP=@1 KBUILD_BUILD_USER=build KBUILD_BUILD_HOST=build
unset CFLAGS LDFLAGS MAKEFLAGS ARCH CROSS_COMPILE KCFLAGS
source=$WORK/source debian=$WORK/packaging objects=$WORK/objects
mkdir -p "$source" "$debian" "$objects" "$OUT"

unpack() { tar --extract --file="$1" --directory="$2" --strip-components="$3" --no-same-owner; }

unpack "$SOURCES"/linux_*.debian.tar.* "$debian" 1
if [ -f "$SOURCES/$FLAVOUR-kernel.tar" ]; then
    unpack "$SOURCES/$FLAVOUR-kernel.tar" "$source" 1
else
    unpack "$SOURCES"/linux_*.orig.tar.* "$source" 1
fi

# From the general to the particular, as Debian does it: a later line replaces an earlier one.
for name in config kernelarch-x86/config amd64/config; do
    if [ -f "$debian/config/$name" ]; then cat "$debian/config/$name"; fi
done >"$objects/.config"

set_in() { "$source/scripts/config" --file "$objects/.config" "$@"; }
common=(AMD_MEM_ENCRYPT VIRTIO_PCI VIRTIO_BLK DM_VERITY DM_CRYPT DM_INTEGRITY)
set_in --set-str LOCALVERSION "-snp-$FLAVOUR" --disable LOCALVERSION_AUTO --set-str BUILD_SALT ""
set_in --enable AMD_MEM_ENCRYPT
set_in --disable DEBUG_INFO_BTF --disable DEBUG_INFO_DWARF_TOOLCHAIN_DEFAULT --enable DEBUG_INFO_NONE
# Modules are signed with a key that is made for this build and removed with it.
set_in --enable MODULE_SIG_ALL --set-str MODULE_SIG_KEY certs/signing_key.pem --set-str SYSTEM_TRUSTED_KEYS ""
if [ "$FLAVOUR" = host ]; then
    wanted=("${common[@]}" KVM_AMD KVM_AMD_SEV CRYPTO_DEV_CCP_DD CRYPTO_DEV_SP_PSP)
    set_in --module KVM_AMD --enable KVM_AMD_SEV --enable CRYPTO_DEV_CCP --module CRYPTO_DEV_CCP_DD \
        --enable CRYPTO_DEV_SP_PSP
else
    wanted=("${common[@]}" SEV_GUEST TSM_REPORTS)
    set_in --enable VIRT_DRIVERS --module SEV_GUEST
fi
make -C "$source" O="$objects" olddefconfig
for symbol in "${wanted[@]}"; do
    grep -q "^CONFIG_$symbol=[ym]$" "$objects/.config" || {
        echo "kernel.sh: CONFIG_$symbol is not in the configuration, which SEV-SNP needs" >&2
        exit 1
    }
done
[ "${CONFIGURE_ONLY:-no}" != yes ] || exit 0

# -d: what is needed is in tasks/build-packages.yaml; dpkg would ask for packages by other names, too.
make -C "$source" O="$objects" -j "${JOBS:-1}" KDEB_SOURCENAME="linux-snp-$FLAVOUR" DPKG_FLAGS=-d bindeb-pkg
for package in "$WORK"/linux-image-*.deb; do
    case $package in *-dbg_*) ;; *) mv "$package" "$OUT/" ;; esac
done
