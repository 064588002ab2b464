# SPDX-License-Identifier: Apache-2.0
"""Archives, file systems and disk images, made without root."""
