/** @file
  The parts of the driver that starts the measured kernel.

  SPDX-License-Identifier: Apache-2.0
**/

#ifndef START_KERNEL_H_
#define START_KERNEL_H_

#include <PiDxe.h>

/**
  Make the serial port the system's console: text goes out, nothing comes in.

  @return  Errors of the boot services.
**/
EFI_STATUS
InstallConsole (
  VOID
  );

/**
  Set up the PCI bus, install QEMU's ACPI tables, and end the phase in which drivers are started.
**/
VOID
PreparePlatform (
  VOID
  );

#endif
