# SPDX-License-Identifier: Apache-2.0
"""Text or token ids to rewards, and rewards to utilities."""
