# SPDX-License-Identifier: Apache-2.0
"""PPO for language models."""
