# SPDX-License-Identifier: Apache-2.0
"""Group-robust DPO."""
