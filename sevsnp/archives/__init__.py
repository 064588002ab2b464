# SPDX-License-Identifier: Apache-2.0
"""Archives as entries: tar, cpio, trees and layers. Output has the same bytes on every machine."""
