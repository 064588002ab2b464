#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the stage's code: a flat file for the image's address 0x1000, where it begins to run.
#
# SOURCES  the directory of stage.c and stage.ld; only read
# TOOLS    the directory of GCC's cc1, and of the assembler and linker
# OUT      the file to write
#
# The same compiler gives the same bytes in every directory.
set -eu

umask 022
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$SOURCES"
# No header, no call into a library, no table in the image, no register that an interrupt of the firmware does not keep.
"$TOOLS/cc1" -quiet -std=c17 -Os -Wall -Wextra -Werror -o "$work/stage.s" stage.c -nostdinc \
    -ffreestanding -fno-builtin -fno-tree-loop-distribute-patterns -fno-stack-protector \
    -fno-asynchronous-unwind-tables -fno-ident -fcf-protection=none -fno-jump-tables \
    -fpie -mno-red-zone -mgeneral-regs-only
"$TOOLS/x86_64-linux-gnu-as" -o "$work/stage.o" "$work/stage.s"
"$TOOLS/x86_64-linux-gnu-ld" -nostdlib -static --build-id=none --fatal-warnings -T stage.ld \
    -o "$work/stage" "$work/stage.o"
"$TOOLS/x86_64-linux-gnu-objcopy" -O binary -j .text "$work/stage" "$work/code"
cat "$work/code" >"$OUT"
