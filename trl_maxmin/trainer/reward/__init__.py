# SPDX-License-Identifier: Apache-2.0
"""EM for a mixture of reward models."""
