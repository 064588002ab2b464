"""Archives as entries: tar, cpio, trees and layers, the same bytes on every machine."""
