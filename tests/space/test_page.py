# SPDX-License-Identifier: Apache-2.0
"""The page in a browser: it works at both widths, and nothing that a person or a model wrote is ever executed."""

import json
import re
import urllib.error
import urllib.request

import pytest

from tests.space.browser import Watched, browser
from tests.space.fakes import FakeMixture, serving, serving_app, studio
from trl_maxmin.space.config import SpaceConfig
from trl_maxmin.space.run_data import RunData
from trl_maxmin.space.scoring import Studio


pytest.importorskip("gradio", reason="Gradio is not installed (pip install trl-maxmin[space])")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (pip install playwright)")
expect = playwright.expect
pytestmark = [pytest.mark.browser, pytest.mark.slow]

PAYLOADS = [
    "<script>window.owned=1</script>",
    "<img src=x onerror='window.owned=1'>",
    "<svg onload=window.owned=1>",
    "<svg><script>window.owned=1</script></svg>",
    "<iframe srcdoc='<script>parent.owned=1</script>'></iframe>",
    "<a href='javascript:window.owned=1' id=owned>x</a>",
    "[x](javascript:window.owned=1)",
    '![x](x" onerror="window.owned=1)',
    "<details open ontoggle=window.owned=1>",
    "<input autofocus onfocus=window.owned=1>",
    "<body onload=window.owned=1>",
    "<video><source onerror=window.owned=1></video>",
    "<math><mtext><style><img src=x onerror=window.owned=1></style></mtext></math>",
    '"><img src=x onerror=window.owned=1>',
    "' onmouseover='window.owned=1",
    "</p></article></section><img src=x onerror=window.owned=1>",
    "</textarea><script>window.owned=1</script>",
    "</title><script>window.owned=1</script>",
    "${window.owned=1}",
    "`${window.owned=1}`",
    "{{constructor.constructor('window.owned=1')()}}",
    "{{#with this}}<img src=x onerror=window.owned=1>{{/with}}",
    "&lt;img src=x onerror=window.owned=1&gt;",
    "$$\\href{javascript:window.owned=1}{x}$$",
    "<object data='javascript:window.owned=1'></object>",
    "<style>*{background:url('javascript:window.owned=1')}</style><b>x</b>",
    "<form action='javascript:window.owned=1'><button>x</button></form>",
    "@children",
    "</script><script>window.owned=1</script>",
    "<!--<script>window.owned=1</script>-->",
    "--><img src=x onerror=window.owned=1>",
    "<noscript><p title='</noscript><img src=x onerror=window.owned=1>'></noscript>",
    "<svg><style><img src=x onerror=window.owned=1></style></svg>",
    "<template><img src=x onerror=window.owned=1></template>",
    "<img src='http://example.com/x.png'>",
    "<link rel=stylesheet href='http://example.com/x.css'>",
    "<style>@import 'http://example.com/x.css';</style>",
    "<meta http-equiv=refresh content='0;url=http://example.com'>",
    "<base href='http://example.com/'>",
    "<script src='http://example.com/x.js'></script>",
    "![x](http://example.com/x.png)",
    "\\u003cimg src=x onerror=window.owned=1\\u003e",
    "\u202e<img src=x onerror=window.owned=1>\u202d",
    "\u2028<script>window.owned=1</script>\u2029",
    "\ufeff<svg/onload=window.owned=1>",
    "＜script＞window.owned=1＜/script＞",
    "<scr<script>ipt>window.owned=1</scr</script>ipt>",
    "<IMG SRC=x OnErRoR=window.owned=1>",
    "<a autofocus tabindex=1 onfocus=window.owned=1 href=#>x</a>",
    "<x contenteditable onblur=window.owned=1 autofocus>x",
    "<dialog open onclose=window.owned=1></dialog><button popovertarget=x onbeforetoggle=window.owned=1>x</button>",
    "<details><summary onclick=window.owned=1>x</summary></details>",
    "data:text/html,<script>window.owned=1</script>",
    "<%= window.owned=1 %> #{window.owned=1} [[window.owned=1]]",
    "${alert(window.owned=1)} {value} {{value}} {props.value}",
    "\x1b]8;;javascript:window.owned=1\x07x\x1b]8;;\x07",
]


@pytest.fixture(scope="module")
def opened():
    with browser() as chromium:
        yield chromium


def small_run():
    numbers = {p: {g: {"mean": 0.6, "low": 0.5, "high": 0.7} for g in ("long", "short")} for p in ("single", "maxmin")}
    return RunData(
        groups=["long", "short"],
        win_rate=numbers,
        utility=numbers,
        curves={"maxmin": [[0, 0.0], [1, 1.0]]},
        replies={p: [("maxmin", "a" * n, True) for n in (1, 2, 3)] for p in ("first", "second")},
    )


@pytest.mark.parametrize("width", ["desktop", "phone"])
def test_compare_groups_blind_vote_and_reload(opened, tmp_path, width):
    with serving(studio(run=small_run(), votes_dir=str(tmp_path))) as url:
        watched = Watched(opened, url, width, dark=width == "phone")
        page = watched.page
        page.get_by_label("Prompt").fill("hello")
        watched.compare()
        assert page.locator("#mm-answers .mm-answer").all_inner_texts() == ["ok", "fine", "answer 0 to hello"]
        assert page.locator("#mm-answers .mm-worst-mark").count() == 3
        assert headings(page) == [1, 2, 2, 2]
        assert "Compared with Single reward, MaxMin is" in page.locator("#mm-words").inner_text()
        page.click("#mm-surprise")
        expect(page.get_by_label("Prompt")).not_to_have_value("hello")
        assert page.locator("#mm-answers .mm-asked").inner_text() == "Prompt hello"

        page.get_by_role("tab", name="Groups").click()
        page.get_by_role("tab", name="short").click()
        page.get_by_role("heading", name="Best for short").wait_for()
        assert headings(page) == [1, 2, 3, 3]
        page.get_by_role("tab", name="Overview").click()
        page.locator("svg[role=img]:visible").nth(2).wait_for()
        assert page.locator("svg[role=img]:visible").count() == 3
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

        page.get_by_role("tab", name="Compare").click()
        page.get_by_label("Blind").check()
        watched.compare()
        assert page.get_by_role("heading", name="Answer C").is_visible()
        assert "MaxMin" not in page.locator("#mm-answers").inner_text()
        assert page.locator("#mm-answers .mm-bar").count() == 0
        third = page.locator("#mm-answers .mm-answer").nth(2).inner_text()
        page.locator("#mm-choice").get_by_text("Answer C").click()
        page.click("#mm-vote")
        page.get_by_text("Thank you, your vote is stored.").wait_for()
        watched.settle()
        assert "MaxMin" in page.locator("#mm-answers").inner_text()
        rows = [json.loads(line) for line in (tmp_path / "votes.jsonl").read_text().splitlines()]
        assert len(rows) == 2 and {row["chosen"] for row in rows} == {third} and all(row["blind"] for row in rows)

        page.reload()
        expect(page.locator("#mm-answers")).to_have_text("The answers appear here.")
        assert page.locator("#mm-answers .mm-answer").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        watched.close()
        assert watched.wrong == []


def test_no_vote_while_answers_grow(opened, tmp_path):
    made = studio(votes_dir=str(tmp_path))
    with serving(made) as url:
        watched = Watched(opened, url, "desktop")
        page = watched.page
        page.get_by_label("Prompt").fill("hello")
        watched.compare()
        page.locator("#mm-choice label").first.click()
        expect(page.locator("#mm-vote")).to_be_enabled()
        made.policies["maxmin"].gate.clear()
        page.get_by_label("Prompt").fill("another")
        page.click("#mm-compare")
        page.wait_for_selector("#mm-answers [aria-busy=true]")
        expect(page.locator("#mm-vote")).to_be_disabled()
        expect(page.locator("#mm-choice input:checked")).to_have_count(0)
        expect(page.locator("#mm-choice input:enabled")).to_have_count(0)
        made.policies["maxmin"].gate.set()
        page.wait_for_selector("#mm-answers [aria-busy=false]")
        watched.settle()
        page.locator("#mm-choice label").first.click()
        page.click("#mm-vote")
        page.get_by_text("Thank you, your vote is stored.").wait_for()
        rows = [json.loads(line) for line in (tmp_path / "votes.jsonl").read_text().splitlines()]
        assert {row["prompt"] for row in rows} == {"another"}
        watched.close()
        assert watched.wrong == []


def test_waiting_and_results_are_seen_and_read_out(opened, tmp_path):
    made = studio(votes_dir=str(tmp_path))
    with serving_app(made) as (app, url):
        watched = Watched(opened, url, "desktop")
        page = watched.page
        said, words = page.locator("#mm-message [role=status]"), page.locator("#mm-words [role=status]")
        for region in (said, words):
            expect(region).to_have_attribute("aria-live", "polite")
            region.evaluate("e => e.setAttribute('data-first', '')")  # what is replaced is not read out
        made.policies["maxmin"].gate.clear()
        body = {"data": ["p", list(made.policies), 1.0, 0, 5, False], "session_hash": "another"}
        body["fn_index"] = next(number for number, known in app.fns.items() if known.fn.__name__ == "compare")
        join = urllib.request.Request(f"{url}/gradio_api/queue/join", json.dumps(body).encode())
        join.add_header("Content-Type", "application/json")
        urllib.request.urlopen(join).close()
        page.get_by_label("Prompt").fill("hello")
        page.click("#mm-compare")
        place = page.locator("#mm-answers [data-testid=status-tracker]")
        expect(place).to_contain_text("queue: 1/1")
        # Not only in the document: it lies where one looks, and its text is not cut off.
        assert (
            place.evaluate("e => e.getBoundingClientRect().height >= 16 && getComputedStyle(e).overflow") == "visible"
        )
        made.policies["maxmin"].gate.set()
        expect(said).to_have_text("The answers are complete.")
        expect(words).to_contain_text("Compared with Single reward")
        page.locator("#mm-choice label").first.click()
        page.click("#mm-vote")
        expect(said).to_have_text("Thank you, your vote is stored.")
        assert page.locator("[role=status][data-first]").count() == 2
        assert page.locator("[role=status] [role=status]").count() == 0
        watched.close()
        assert watched.wrong == []


def headings(page):
    """Levels of the headings that can be seen, from the top."""
    return page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].filter(e => e.offsetParent).map(e => +e.tagName[1])"
    )


def focused(page):
    """What the keyboard is on: the nearest id, and the text."""
    return page.evaluate("[document.activeElement.closest('[id]')?.id, document.activeElement.innerText]")


def tab_to(page, there):
    """Press Tab until the focus is there."""
    for _ in range(60):
        page.keyboard.press("Tab")
        id, text = focused(page)
        if there in (id, (text or "").strip()):
            return
        if page.locator(f"#{there}").count() and page.evaluate(
            "id => document.getElementById(id).contains(document.activeElement)", there
        ):
            return
    raise AssertionError(f"Tab does not reach {there}; it stands on {focused(page)}")


@pytest.mark.parametrize("width", ["desktop", "phone"])
def test_the_keyboard_is_enough_and_every_control_has_a_name(opened, tmp_path, width):
    with serving(studio(run=small_run(), votes_dir=str(tmp_path))) as url:
        watched = Watched(opened, url, width)
        page = watched.page
        page.get_by_label("Prompt").focus()
        page.keyboard.press("Control+A")
        page.keyboard.type("typed")
        tab_to(page, "mm-policies")
        page.keyboard.press("Space")  # one policy less
        tab_to(page, "mm-blind")
        page.keyboard.press("Space")
        tab_to(page, "mm-compare")
        watched.compare(lambda: page.keyboard.press("Enter"))
        assert page.get_by_role("heading", name="Answer B").is_visible()
        assert page.locator("#mm-answers .mm-answer").count() == 2
        first, second = sorted(page.locator("#mm-answers .mm-answer").all_inner_texts())
        assert re.fullmatch(r"answer \d+ to typed", first) and second == "fine"
        tab_to(page, "mm-choice")
        page.keyboard.press("Space")
        tab_to(page, "mm-vote")
        page.keyboard.press("Enter")
        page.get_by_text("Thank you, your vote is stored.").wait_for()
        watched.settle()
        assert focused(page)[0] == "mm-vote"
        page.keyboard.press("Enter")
        page.get_by_text("You have voted on these answers.").wait_for()
        assert len((tmp_path / "votes.jsonl").read_text().splitlines()) == 1
        page.get_by_role("tab", name="Compare").focus()
        tab_to(page, "Groups")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Best for long").wait_for()
        nameless = page.evaluate(
            """[...document.querySelectorAll('input, textarea, select, button, [role=tab], [role=button]')]
            .filter(e => e.offsetParent && !(e.labels?.length || e.getAttribute('aria-label') || e.innerText?.trim()
                    || e.getAttribute('aria-labelledby') || e.title || e.closest('label')))
            .map(e => e.outerHTML.slice(0, 120))"""
        )
        assert nameless == []
        watched.close()
        assert watched.wrong == []


def test_payloads_are_shown_as_text_wherever_they_come_from(opened, tmp_path):
    names = [f"{n} {payload}" for n, payload in enumerate([PAYLOADS[28], *PAYLOADS[1:4]])]
    assert len(PAYLOADS) % 4 == 0

    def reply(index):
        return lambda prompt, settings: PAYLOADS[settings.seed * 4 + index]

    numbers = {name: {group: {"mean": 0.5} for group in PAYLOADS[4:8]} for name in PAYLOADS[8:11]}
    run = RunData(
        groups=PAYLOADS[4:8],
        majority=PAYLOADS[4],
        win_rate=numbers,
        utility=numbers,
        utility_kind=PAYLOADS[11],
        curves={PAYLOADS[12]: [[0, 0.0], [1, 1.0]]},
        replies={payload: [(PAYLOADS[13], payload, True)] for payload in PAYLOADS},
        group_facts={
            g: {"share": 0.5, "examples": [dict.fromkeys(("prompt", "chosen", "rejected"), p) for p in PAYLOADS]}
            for g in PAYLOADS[4:8]
        },
        cards={names[0]: "\n".join(PAYLOADS)},
    )
    made = studio(
        {name: reply(index) for index, name in enumerate(names)},
        FakeMixture(PAYLOADS[4:8]),
        run,
        reference=names[0],
        title=PAYLOADS[17] + PAYLOADS[28],
        votes_dir=str(tmp_path),
    )
    made.problems = list(PAYLOADS)
    with serving(made) as url:
        watched = Watched(opened, url, "desktop")
        page = watched.page
        page.get_by_text("Settings: temperature").click()
        seen = []
        for turn in range(len(PAYLOADS) // 4):
            page.get_by_label("Prompt").fill(PAYLOADS[turn * 4 % len(PAYLOADS)])
            page.get_by_label("Seed").fill(str(turn))
            watched.compare()
            seen += [e.evaluate("e => e.textContent") for e in page.locator("#mm-answers .mm-answer").all()]
        assert seen == PAYLOADS
        page.locator("#mm-choice label").first.click()
        page.click("#mm-vote")
        page.get_by_text("your vote is stored").wait_for()
        page.get_by_label("or one from the evaluation").click()
        page.get_by_role("tab", name="Groups").click()
        page.wait_for_selector("[aria-label='Best and worst answers']")
        for tab in page.get_by_role("tab").all():
            if tab.is_visible():
                tab.click()
        page.get_by_role("tab", name="Overview").click()
        page.locator("details summary").first.click()
        shown = page.locator("details pre").first.evaluate("e => e.textContent")
        assert shown == "\n".join(PAYLOADS)
        page.wait_for_timeout(500)
        assert page.evaluate("window.owned") is None
        assert (
            page.evaluate("document.querySelectorAll('.mm-cards img, .mm-cards script, .mm-list img, pre *').length")
            == 0
        )
        watched.close()
        assert watched.wrong == []


def test_long_prompts_and_missing_models_are_answered_politely(opened, tmp_path):
    made = studio(votes_dir=str(tmp_path), max_prompt_characters=10)
    made.problems = ["The policy 'x' could not be loaded, so it is not shown here."]
    with serving(made) as url:
        watched = Watched(opened, url, "phone")
        assert watched.page.get_by_text("could not be loaded").is_visible()
        # The field takes no more; what is sent past it is refused by the server (test_requests_that_are_refused).
        watched.page.get_by_label("Prompt").fill("")
        watched.page.click("#mm-compare")
        watched.page.get_by_text("Please write a prompt").wait_for()
        watched.close()
        assert watched.wrong == []


@pytest.mark.parametrize("template", ["/gradio_api/file={}", "/file={}", "/static/{}", "/assets/{}", "/svelte/{}"])
def test_no_file_of_the_machine_is_served(tmp_path, template, monkeypatch):
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret")
    (tmp_path / "link.txt").symlink_to(secret)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    with serving(studio(votes_dir=str(tmp_path / "votes"))) as url:
        (tmp_path / "votes" / "votes.jsonl").write_text("a secret\n")
        (tmp_path / "gradio").mkdir(exist_ok=True)
        (tmp_path / "gradio" / "cached.txt").symlink_to(secret)
        for path in (
            str(secret),
            "secret.txt",
            "link.txt",
            str(tmp_path / "gradio" / "cached.txt"),
            "votes/votes.jsonl",
            f"../../../../../..{secret}",
            f"..%2f..%2f..%2f..%2f..%2f..{secret}",
            f"%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e{secret}",
            f"..%252f..%252f..%252f..%252f..{secret}",
            f"..%5c..%5c..%5c{secret}",
            f"%00{secret}",
            f"{secret}%00.css",
            f"file://{secret}",
            f"/proc/self/cwd/{secret.name}",
            f"/proc/self/root{secret}",
            "/etc/passwd",
            "../../../../../../etc/passwd",
            "....//....//etc/passwd",
        ):
            try:
                with urllib.request.urlopen(url + template.format(path)) as response:
                    body = response.read()
            except urllib.error.HTTPError as error:
                assert error.code in (400, 403, 404, 405, 422, 500)
                body = error.read()
            assert b"a secret" not in body and b"root:" not in body


def test_nothing_is_taken_or_fetched_for_others(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    with serving(studio(votes_dir=str(tmp_path / "votes"))) as url:
        body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.html"\r\n\r\nhello\r\n--x--\r\n'
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        for path, data in (
            ("/gradio_api/upload", body),
            ("//gradio_api//upload", body),
            ("/gradio_api/%75pload", body),
            ("/gradio_api/process_recording", body),
            (f"/gradio_api/file={url}/config", None),
            (f"/gradio_api/proxy={url}/config", None),
            ("/gradio_api/stream/a/b/1/playlist.m3u8", None),
            ("/gradio_api/custom_component/a/client/component/x.js", None),
            ("/monitoring", None),
            ("/monitoring/summary", None),
        ):
            request = urllib.request.Request(url + path, data, headers if data else {})
            with pytest.raises(urllib.error.HTTPError) as error:
                urllib.request.urlopen(request)
            assert error.value.code in (404, 405), path
        assert not [path for path in (tmp_path / "gradio").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "prompt",
    [
        "x" * 60_000,
        "\ud800",
        "שלום עולם",
        "\u202eabc\u202c",
        "👩‍👩‍👧‍👦" * 50,
        "a\x00b",
        "\n\n\n",
        "%s%s{0}",
        12,
        None,
        ["a"],
    ],
    ids=range(11),
)
def test_prompts_of_every_kind_get_an_answer_or_a_sentence(run_folder, tmp_path, prompt):
    """What clients send past the page's form, to the models and tokenizers of the embedded world."""
    made = Studio.load(SpaceConfig(run=str(run_folder), votes_dir=str(tmp_path), baseline_replies=4))
    with serving(made) as url:
        body = json.dumps({"data": [prompt, ["reference", "maxmin"], 1.0, 0, 5, False]}).encode()
        request = urllib.request.Request(f"{url}/gradio_api/call/compare", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as response:
            event = json.loads(response.read())["event_id"]
        with urllib.request.urlopen(f"{url}/gradio_api/call/compare/{event}") as response:
            said = response.read().decode()
        last = said.strip().split("event: ")[-1]
        assert last.startswith("complete")
        assert "mm-answer" in last or "mm-warning" in last
        assert "Something went wrong" not in last
        assert len(last) < 20_000


@pytest.mark.slow
def test_a_body_that_nobody_types_is_refused_in_words(run_folder, tmp_path):
    made = Studio.load(SpaceConfig(run=str(run_folder), votes_dir=str(tmp_path), baseline_replies=4))
    with serving(made) as url:
        body = json.dumps({"data": ["x" * 1_000_000, ["reference", "maxmin"], 1.0, 0, 5, False]}).encode()
        request = urllib.request.Request(f"{url}/gradio_api/call/compare", body, {"Content-Type": "application/json"})
        with pytest.raises(urllib.error.HTTPError, match="413") as refused:
            urllib.request.urlopen(request)
        assert "The body is larger than 65536 bytes" in refused.value.read().decode()
