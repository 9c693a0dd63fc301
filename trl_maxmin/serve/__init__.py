# SPDX-License-Identifier: Apache-2.0
"""A mixture's rewards over HTTP, for trainers of other frameworks; the contract is docs/serve.md."""
