/** @file
  Starts the measured kernel, and nothing else.

  This driver is the firmware's boot manager. It knows no disks, no network, no boot options, no keys and no menu. If
  the kernel cannot be started or returns, it prints one line and stops.

  SPDX-License-Identifier: Apache-2.0
**/

#include "StartKernel.h"

#include <Library/BaseLib.h>
#include <Library/MemoryAllocationLib.h>
#include <Library/QemuLoadImageLib.h>
#include <Library/UefiBootServicesTableLib.h>
#include <Library/UefiLib.h>
#include <Protocol/Bds.h>

STATIC
VOID
SetVendor (
  VOID
  )
{
  STATIC CONST CHAR16  Vendor[] = L"openend2e-sevsnp";

  // Linux prints the name, and reads it after the boot services have ended.
  gST->FirmwareVendor = AllocateRuntimeCopyPool (sizeof (Vendor), Vendor);
  gST->Hdr.CRC32      = 0;
  gBS->CalculateCrc32 (gST, gST->Hdr.HeaderSize, &gST->Hdr.CRC32);
}

/**
  The entry of the boot device selection phase (PI 1.8, volume 2, section 12.2). It does not return.

  @param[in] This  The protocol's instance.
**/
STATIC
VOID
EFIAPI
StartKernel (
  IN EFI_BDS_ARCH_PROTOCOL  *This
  )
{
  EFI_HANDLE  Kernel;

  if (!EFI_ERROR (InstallConsole ())) {
    SetVendor ();
    PreparePlatform ();
    if (!EFI_ERROR (QemuLoadKernelImage (&Kernel))) {
      EfiSignalEventReadyToBoot ();
      QemuStartKernelImage (&Kernel);
    }

    Print (L"StartKernel: No bootable option was found.\r\n");
  }

  CpuDeadLoop ();
}

STATIC EFI_BDS_ARCH_PROTOCOL  mBds = { StartKernel };

/**
  Install the protocol that the DXE core calls when all drivers are loaded.

  @param[in] ImageHandle  The driver's handle.
  @param[in] SystemTable  The system table.

  @return  Errors of the boot services.
**/
EFI_STATUS
EFIAPI
StartKernelEntry (
  IN EFI_HANDLE        ImageHandle,
  IN EFI_SYSTEM_TABLE  *SystemTable
  )
{
  EFI_HANDLE  Handle;

  Handle = NULL;
  return gBS->InstallProtocolInterface (&Handle, &gEfiBdsArchProtocolGuid, EFI_NATIVE_INTERFACE, &mBds);
}
