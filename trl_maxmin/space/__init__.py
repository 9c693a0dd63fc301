# SPDX-License-Identifier: Apache-2.0
"""The Space at run time: what its buttons compute (no Gradio), its page, its votes, and how it is published.

`config` says what to show; `policies`, `scoring`, `run_data`, `groups`, `votes` and `limits` compute; `html` and
`figures` write escaped HTML; `app` and `wiring` are the only modules that import Gradio; `publish` puts it on the Hub.
"""
