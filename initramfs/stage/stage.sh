#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the stage's code: a flat file for the image's address 0x1000, where it begins to run.
#
# SOURCES  the directory of stage.c and stage.ld; only read
# OUT      the file to write
#
# Needs gcc and binutils. The same compiler gives the same bytes in every directory.
set -eu

export LC_ALL=C.UTF-8 TZ=UTC
umask 022
object=$(mktemp) image=$(mktemp)
trap 'rm -f "$object" "$image"' EXIT
cd "$SOURCES"
# No call into a library, no table in the image, no register that an interrupt of the firmware does not keep.
gcc -std=c17 -Os -Wall -Wextra -Werror -c -o "$object" stage.c \
    -ffreestanding -fno-builtin -fno-tree-loop-distribute-patterns -fno-stack-protector \
    -fno-asynchronous-unwind-tables -fno-ident -fcf-protection=none -fno-jump-tables \
    -fpie -mno-red-zone -mgeneral-regs-only
ld -nostdlib -static --build-id=none --fatal-warnings -T stage.ld -o "$image" "$object"
objcopy -O binary -j .text "$image" "$OUT"
