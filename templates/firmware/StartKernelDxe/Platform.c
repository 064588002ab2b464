/** @file
  The machine as Linux expects to find it: an enumerated PCI bus, routed interrupts, and QEMU's ACPI tables.

  SPDX-License-Identifier: Apache-2.0
**/

#include "StartKernel.h"

#include <Guid/EventGroup.h>
#include <Guid/RootBridgesConnectedEventGroup.h>
#include <IndustryStandard/Pci.h>
#include <IndustryStandard/Q35MchIch9.h>
#include <Library/BaseLib.h>
#include <Library/DevicePathLib.h>
#include <Library/IoLib.h>
#include <Library/MemoryAllocationLib.h>
#include <Library/PciLib.h>
#include <Library/UefiBootServicesTableLib.h>
#include <Library/UefiLib.h>
#include <OvmfPlatforms.h>
#include <Protocol/DevicePath.h>
#include <Protocol/DxeSmmReadyToLock.h>
#include <Protocol/PciIo.h>
#include <Protocol/PciRootBridgeIo.h>

// The LPC bridge of q35's chip set, with its registers PIRQA_ROUT and PIRQE_ROUT (four of each; ICH9, section 13.1).
#define ROUTE_A  POWER_MGMT_REGISTER_Q35 (0x60)
#define ROUTE_E  POWER_MGMT_REGISTER_Q35 (0x68)
// Slots from here on have the fixed routing of the chip set, not the rotated one.
#define FIRST_FIXED_SLOT  25
// The register PM1_CNT behind PMBASE; its lowest bit says that ACPI events are interrupts.
#define PM1_CONTROL  4
#define SCI_ENABLE   BIT0

// The two lines of the interrupt controller that PCI cards share, as QEMU's own tables have them.
STATIC CONST UINT8  mLines[] = { 10, 10, 11, 11 };

typedef
VOID
(*VISIT)(
  IN EFI_HANDLE  Handle
  );

STATIC
VOID
VisitAll (
  IN EFI_GUID  *Protocol,
  IN VISIT     Visit
  )
{
  EFI_HANDLE  *Handles;
  UINTN       Count;
  UINTN       Index;

  if (EFI_ERROR (gBS->LocateHandleBuffer (ByProtocol, Protocol, NULL, &Count, &Handles))) {
    return;
  }

  for (Index = 0; Index < Count; Index++) {
    Visit (Handles[Index]);
  }

  FreePool (Handles);
}

STATIC
VOID
ConnectBridge (
  IN EFI_HANDLE  Handle
  )
{
  gBS->ConnectController (Handle, NULL, NULL, FALSE);
}

/**
  Write the interrupt line of a PCI card into its configuration, where a kernel without ACPI reads it.

  Behind a bridge, a card's pin is rotated by its slot (PCI-to-PCI Bridge 1.2, section 9.1).

  @param[in] Handle  The card's handle.
**/
STATIC
VOID
SetLine (
  IN EFI_HANDLE  Handle
  )
{
  EFI_PCI_IO_PROTOCOL       *Card;
  EFI_DEVICE_PATH_PROTOCOL  *Node;
  UINT8                     Pin;
  UINT8                     Line;
  UINTN                     Slot;
  UINTN                     Turns;
  BOOLEAN                   OnRootBus;

  if (EFI_ERROR (gBS->HandleProtocol (Handle, &gEfiPciIoProtocolGuid, (VOID **)&Card)) ||
      EFI_ERROR (gBS->HandleProtocol (Handle, &gEfiDevicePathProtocolGuid, (VOID **)&Node)) ||
      EFI_ERROR (Card->Pci.Read (Card, EfiPciIoWidthUint8, PCI_INT_PIN_OFFSET, 1, &Pin)) ||
      (Pin == 0))
  {
    return;
  }

  Turns     = Pin - 1;
  OnRootBus = TRUE;
  for ( ; !IsDevicePathEnd (Node); Node = NextDevicePathNode (Node)) {
    if ((DevicePathType (Node) != HARDWARE_DEVICE_PATH) || (DevicePathSubType (Node) != HW_PCI_DP)) {
      continue;
    }

    Slot = ((PCI_DEVICE_PATH *)Node)->Device;
    if (!OnRootBus || (Slot < FIRST_FIXED_SLOT)) {
      Turns += Slot;
    }

    OnRootBus = FALSE;
  }

  Line = mLines[Turns % ARRAY_SIZE (mLines)];
  Card->Pci.Write (Card, EfiPciIoWidthUint8, PCI_INT_LINE_OFFSET, 1, &Line);
}

STATIC
VOID
RouteInterrupts (
  VOID
  )
{
  UINTN   Index;
  UINT32  Base;

  if (PciRead16 (OVMF_HOSTBRIDGE_DID) != INTEL_Q35_MCH_DEVICE_ID) {
    return;
  }

  for (Index = 0; Index < ARRAY_SIZE (mLines); Index++) {
    PciWrite8 (ROUTE_A + Index, mLines[Index]);
    PciWrite8 (ROUTE_E + Index, mLines[Index]);
  }

  VisitAll (&gEfiPciIoProtocolGuid, SetLine);
  Base = PciRead32 (POWER_MGMT_REGISTER_Q35 (ICH9_PMBASE)) & ICH9_PMBASE_MASK;
  IoOr16 (Base + PM1_CONTROL, SCI_ENABLE);
}

VOID
PreparePlatform (
  VOID
  )
{
  EFI_HANDLE  Handle;

  VisitAll (&gEfiPciRootBridgeIoProtocolGuid, ConnectBridge);
  // QEMU makes its ACPI tables only when the PCI bus is enumerated.
  EfiEventGroupSignal (&gRootBridgesConnectedEventGroupGuid);
  EfiEventGroupSignal (&gEfiEndOfDxeEventGroupGuid);
  Handle = NULL;
  gBS->InstallProtocolInterface (&Handle, &gEfiDxeSmmReadyToLockProtocolGuid, EFI_NATIVE_INTERFACE, NULL);
  RouteInterrupts ();
}
