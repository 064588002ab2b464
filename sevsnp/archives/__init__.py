# SPDX-License-Identifier: Apache-2.0
"""Archives as entries: tar, cpio, trees and layers, the same bytes on every machine."""
