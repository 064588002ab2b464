/** @file
  The console: text goes to the first serial port. No key is ever read.

  Linux's EFI stub prints through the system table, so the table must have a console. The protocols are those of
  UEFI 2.10, sections 12.3 and 12.4.

  SPDX-License-Identifier: Apache-2.0
**/

#include "StartKernel.h"

#include <Library/SerialPortLib.h>
#include <Library/UefiBootServicesTableLib.h>
#include <Protocol/SimpleTextIn.h>
#include <Protocol/SimpleTextOut.h>

#define COLUMNS  80
#define ROWS     25

STATIC
EFI_STATUS
EFIAPI
ResetText (
  IN EFI_SIMPLE_TEXT_OUTPUT_PROTOCOL  *This,
  IN BOOLEAN                          ExtendedVerification
  )
{
  return EFI_SUCCESS;
}

STATIC
EFI_STATUS
EFIAPI
WriteText (
  IN EFI_SIMPLE_TEXT_OUTPUT_PROTOCOL  *This,
  IN CHAR16                           *String
  )
{
  UINT8  Character;

  for ( ; *String != L'\0'; String++) {
    Character = (*String < 0x7F) ? (UINT8)*String : '?';
    SerialPortWrite (&Character, 1);
  }

  return EFI_SUCCESS;
}

STATIC
EFI_STATUS
EFIAPI
TestText (
  IN EFI_SIMPLE_TEXT_OUTPUT_PROTOCOL  *This,
  IN CHAR16                           *String
  )
{
  return EFI_SUCCESS;
}

STATIC
EFI_STATUS
EFIAPI
QueryMode (
  IN  EFI_SIMPLE_TEXT_OUTPUT_PROTOCOL  *This,
  IN  UINTN                            ModeNumber,
  OUT UINTN                            *Columns,
  OUT UINTN                            *Rows
  )
{
  if (ModeNumber != 0) {
    return EFI_UNSUPPORTED;
  }

  *Columns = COLUMNS;
  *Rows    = ROWS;
  return EFI_SUCCESS;
}

STATIC
EFI_STATUS
EFIAPI
SetMode (
  IN EFI_SIMPLE_TEXT_OUTPUT_PROTOCOL  *This,
  IN UINTN                            ModeNumber
  )
{
  return (ModeNumber == 0) ? EFI_SUCCESS : EFI_UNSUPPORTED;
}

STATIC
EFI_STATUS
EFIAPI
SetAttribute (
  IN EFI_SIMPLE_TEXT_OUTPUT_PROTOCOL  *This,
  IN UINTN                            Attribute
  )
{
  return EFI_SUCCESS;
}

STATIC
EFI_STATUS
EFIAPI
ClearScreen (
  IN EFI_SIMPLE_TEXT_OUTPUT_PROTOCOL  *This
  )
{
  return EFI_SUCCESS;
}

STATIC
EFI_STATUS
EFIAPI
SetCursorPosition (
  IN EFI_SIMPLE_TEXT_OUTPUT_PROTOCOL  *This,
  IN UINTN                            Column,
  IN UINTN                            Row
  )
{
  return EFI_UNSUPPORTED;
}

STATIC
EFI_STATUS
EFIAPI
EnableCursor (
  IN EFI_SIMPLE_TEXT_OUTPUT_PROTOCOL  *This,
  IN BOOLEAN                          Visible
  )
{
  return EFI_UNSUPPORTED;
}

STATIC EFI_SIMPLE_TEXT_OUTPUT_MODE  mMode = { 1, 0, EFI_TEXT_ATTR (EFI_LIGHTGRAY, EFI_BLACK), 0, 0, FALSE };

STATIC EFI_SIMPLE_TEXT_OUTPUT_PROTOCOL  mOutput = {
  ResetText,
  WriteText,
  TestText,
  QueryMode,
  SetMode,
  SetAttribute,
  ClearScreen,
  SetCursorPosition,
  EnableCursor,
  &mMode
};

STATIC
EFI_STATUS
EFIAPI
ResetKeys (
  IN EFI_SIMPLE_TEXT_INPUT_PROTOCOL  *This,
  IN BOOLEAN                         ExtendedVerification
  )
{
  return EFI_SUCCESS;
}

STATIC
EFI_STATUS
EFIAPI
ReadKey (
  IN  EFI_SIMPLE_TEXT_INPUT_PROTOCOL  *This,
  OUT EFI_INPUT_KEY                   *Key
  )
{
  return EFI_NOT_READY;
}

STATIC
VOID
EFIAPI
NeverReady (
  IN EFI_EVENT  Event,
  IN VOID       *Context
  )
{
}

STATIC EFI_SIMPLE_TEXT_INPUT_PROTOCOL  mInput = { ResetKeys, ReadKey, NULL };

EFI_STATUS
InstallConsole (
  VOID
  )
{
  EFI_STATUS  Status;
  EFI_HANDLE  Handle;

  Status = SerialPortInitialize ();
  if (EFI_ERROR (Status)) {
    return Status;
  }

  Status = gBS->CreateEvent (EVT_NOTIFY_WAIT, TPL_NOTIFY, NeverReady, NULL, &mInput.WaitForKey);
  if (EFI_ERROR (Status)) {
    return Status;
  }

  Handle = NULL;
  Status = gBS->InstallMultipleProtocolInterfaces (
                  &Handle,
                  &gEfiSimpleTextInProtocolGuid,
                  &mInput,
                  &gEfiSimpleTextOutProtocolGuid,
                  &mOutput,
                  NULL
                  );
  if (EFI_ERROR (Status)) {
    return Status;
  }

  gST->ConsoleInHandle     = Handle;
  gST->ConIn               = &mInput;
  gST->ConsoleOutHandle    = Handle;
  gST->ConOut              = &mOutput;
  gST->StandardErrorHandle = Handle;
  gST->StdErr              = &mOutput;
  return EFI_SUCCESS;
}
