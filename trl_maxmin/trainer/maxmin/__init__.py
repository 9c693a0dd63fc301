# SPDX-License-Identifier: Apache-2.0
"""Whose rewards count: welfare, calibration, and MaxMin in PPO, GRPO and RLOO."""
