# SPDX-License-Identifier: Apache-2.0
"""QEMU, firmware and kernels built from source: in a container or on this machine, by the same scripts."""
