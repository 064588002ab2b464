"""Archives, file systems and disk images, made without root."""
