# SPDX-License-Identifier: Apache-2.0
"""The page: layout, and which action belongs to which part."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


# Before Gradio is imported: the page and its server send nothing to anyone.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402

from ..door import Door  # noqa: E402
from . import figures, html  # noqa: E402
from .admission import admit_fairly  # noqa: E402
from .config import MAX_POLICIES, SpaceConfig  # noqa: E402
from .guard import Guard  # noqa: E402
from .scoring import Studio, label  # noqa: E402
from .votes import Ballot  # noqa: E402
from .wiring import Handlers  # noqa: E402


logger = logging.getLogger(__name__)

#: A body is refused while it arrives; open requests are mostly the pages that wait for their turn.
DOOR = {"max_body": 65_536, "body_seconds": 30.0, "max_requests": 4000}
# Of an element that stays while its content changes: what comes later is read out.
_LIVE = "element.setAttribute('role', 'status'); element.setAttribute('aria-live', 'polite');"
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Noto Sans", "DejaVu Sans", "sans-serif"]


def create(config: SpaceConfig | None = None, studio: Studio | None = None) -> tuple[gr.Blocks, dict[str, Any]]:
    """Load everything once and lay out the page.

    Args:
        config ([`SpaceConfig`], *optional*): default: [`SpaceConfig.load`] from the environment.
        studio ([`Studio`], *optional*): already loaded models.

    Returns:
        `(gr.Blocks, dict)`: the app, and the keyword arguments for its `launch`.

    Raises:
        ValueError: the settings name nothing to show.
    """
    config = config or SpaceConfig.load()
    studio = studio or Studio.load(config)
    ballot = None
    if config.votes_dir:
        reference = studio.policies.get(config.reference) or next(iter(studio.policies.values()), None)
        chat = bool(reference and getattr(reference.tokenizer, "chat_template", None))
        try:
            ballot = Ballot(
                config.votes_dir,
                config.votes_dataset,
                config.votes_minutes,
                config.votes_public,
                chat,
                config.chat_template_kwargs,
            )
            ballot.start()
        except OSError as error:
            logger.exception("no votes can be stored")
            studio.problems.append(
                f"Votes cannot be stored in {config.votes_dir!r} ({error.strerror}), so this page takes none."
            )
    handlers = Handlers(studio, ballot)
    with gr.Blocks(title=config.title, analytics_enabled=False, fill_width=False) as app:
        gr.HTML(html.header(config, studio.problems))
        with gr.Tabs():
            with gr.Tab("Compare"):
                _compare_tab(studio, handlers)
            with gr.Tab("Groups") as groups_tab:
                pages = _groups_tab(studio)
            with gr.Tab("Overview"):
                gr.HTML(
                    '<section aria-label="Overview">'
                    + _drawn("The figures", lambda: figures.overview(studio.run))
                    + _drawn("The tables", lambda: html.overview_table(studio.run))
                    + _drawn("The diagnosis", lambda: html.diagnosis_section(studio.run))
                    + _drawn("The model cards", lambda: html.cards_section(studio))
                    + "</section>"
                )
        if pages:
            groups_tab.select(
                handlers.fill_groups,
                None,
                pages,
                concurrency_id="models",
                show_progress="hidden",
                api_visibility="private",
            )
    # Not open to direct calls: they would run beside the queue, as many at once as are made.
    app.queue(api_open=False, default_concurrency_limit=1)
    admit_fairly(app, config.queue_size)
    theme = gr.themes.Default(font=_FONTS, font_mono=["ui-monospace", "DejaVu Sans Mono", "monospace"])
    return app, {
        "css_paths": Path(__file__).with_name("style.css"),
        "theme": theme,
        "share": False,
        "ssr_mode": False,
        "show_error": False,
        "footer_links": [],
        "allowed_paths": [],
        "max_file_size": "16kb",
        "enable_monitoring": False,
        # Nothing here takes or gives files, and nobody types as much as a body may hold.
        "app_kwargs": {"middleware": [Middleware(Guard), Middleware(Door, **DOOR)]},
        "state_session_capacity": 2000,
    }


def _drawn(what: str, draw: Callable[[], str]) -> str:
    """A piece of the page; a record that no program of ours wrote must not keep the rest from being shown."""
    try:
        return draw()
    except Exception:
        logger.exception("%s cannot be drawn", what)
        return html.notice(f"{what} cannot be shown: the record of the run is not as it should be.", "warning")


def _compare_tab(studio: Studio, handlers: Handlers) -> None:
    config, names = studio.config, list(studio.policies)
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=280):
            prompt = gr.Textbox(
                label="Prompt",
                value=studio.prompts[0] if studio.prompts else "",
                lines=2,
                max_lines=8,
                max_length=config.max_prompt_characters,
                elem_id="mm-prompt",
            )
        with gr.Column(scale=2, min_width=240):
            picked = gr.Dropdown(
                studio.prompts[:200], value=None, label="or one from the evaluation", visible=bool(studio.prompts)
            )
            surprise = gr.Button("Surprise me", size="sm", visible=bool(studio.prompts), elem_id="mm-surprise")
    policies = gr.CheckboxGroup(
        [(label(name), name) for name in names],
        value=names[:MAX_POLICIES],
        label="Policies to compare (two to four)",
        elem_id="mm-policies",
    )
    with gr.Accordion("Settings: temperature, seed, length", open=False):
        with gr.Row():
            temperature = gr.Slider(0, 2, value=1.0, step=0.1, label="Temperature (0 = always the likeliest word)")
            seed = gr.Number(
                0,
                label="Seed (the same seed gives everyone the same answers; blind ones have a seed of their own)",
                precision=0,
                minimum=0,
            )
            length = gr.Slider(
                1, studio.max_length, value=studio.max_length, step=1, label="Longest answer, in tokens"
            )
    with gr.Row(equal_height=True):
        blind = gr.Checkbox(
            False, label="Blind: hide and shuffle the policies until I have voted", elem_id="mm-blind", min_width=240
        )
        compare = gr.Button("Compare", variant="primary", elem_id="mm-compare", min_width=160)
    message = gr.HTML("", elem_id="mm-message", js_on_load=_LIVE)
    panel = gr.HTML(html.answers_panel([]), elem_id="mm-answers")
    line = gr.HTML("", elem_id="mm-words", js_on_load=_LIVE)
    with gr.Group(visible=handlers.ballot is not None):
        with gr.Row():
            choice = gr.Radio(
                [], label="Which answer do you prefer?", elem_id="mm-choice", interactive=True, min_width=260
            )
            closest = gr.Dropdown(
                [("I would rather not say", ""), *((group, group) for group in studio.groups)],
                value="",
                label="Which group do you feel closest to? (optional)",
                elem_id="mm-closest",
                min_width=260,
            )
        vote = gr.Button("Send my vote", interactive=False, elem_id="mm-vote")
    if handlers.ballot is not None:
        gr.HTML(
            '<p class="mm-small">A vote stores the prompt, the answers (not those cut at the length limit), your '
            "choice, the group if you name one, and a random number for this visit. Nothing else about you.</p>"
        )
    asked = [prompt, policies, temperature, seed, length, blind]
    shown = [panel, line, message, choice, vote]
    for trigger, name in ((compare.click, "compare"), (prompt.submit, None)):
        trigger(
            handlers.compare,
            asked,
            shown,
            concurrency_id="models",
            concurrency_limit=1,
            show_progress="minimal",
            show_progress_on=panel,
            api_name=name,
            api_visibility="public" if name else "private",
        )
    vote.click(
        handlers.vote,
        [choice, closest],
        [panel, line, message],
        concurrency_limit=8,
        preprocess=False,  # which choices there are is asked of the visit, not of the form as the server has it
        show_progress="hidden",
        api_name="vote",
    )
    surprise.click(handlers.surprise, prompt, prompt, queue=False, api_visibility="private", show_progress="hidden")
    # Leaving the list without a choice reports an empty one; it must not wipe what was typed.
    picked.input(
        lambda picked, current: picked or current,
        [picked, prompt],
        prompt,
        queue=False,
        api_visibility="private",
        show_progress="hidden",
    )


def _groups_tab(studio: Studio) -> list[gr.HTML]:
    pages = []
    if not studio.groups:
        gr.HTML(html.notice("There are no groups to show: no reward mixture is loaded."))
        return []
    with gr.Tabs():
        for group in studio.groups:
            with gr.Tab(group):
                gr.HTML(_drawn("This group", lambda group=group: html.group_page(studio, group)))
                pages.append(gr.HTML(""))
    return pages


def launch(config: SpaceConfig | None = None, **kwargs: Any) -> Any:
    """Load, build and serve the page; `kwargs` go to Gradio's `launch`."""
    app, settings = create(config)
    return app.launch(**settings | kwargs)
