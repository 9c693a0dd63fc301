# SPDX-License-Identifier: Apache-2.0
"""What all trainers share: sampling, checkpoints, pushes, the run record."""
