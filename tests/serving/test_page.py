"""The page's files: they name each other, load nothing from elsewhere, and keep to the protocol."""

import fnmatch
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "echox" / "serving" / "page"
FILES = {path.name: path.read_text(encoding="utf-8") for path in PAGE.iterdir()}
SCRIPTS = "\n".join(text for name, text in FILES.items() if name.endswith(".js"))

# Events of OpenAI's Realtime API, those of tools and calls left out.
CLIENT_EVENTS = {
    "session.update",
    "input_audio_buffer.append",
    "input_audio_buffer.commit",
    "input_audio_buffer.clear",
    "conversation.item.create",
    "conversation.item.retrieve",
    "conversation.item.delete",
    "conversation.item.truncate",
    "response.create",
    "response.cancel",
}
SERVER_EVENTS = {
    "error",
    "session.created",
    "session.updated",
    "input_audio_buffer.speech_started",
    "input_audio_buffer.speech_stopped",
    "input_audio_buffer.committed",
    "input_audio_buffer.cleared",
    "conversation.item.added",
    "conversation.item.done",
    "conversation.item.retrieved",
    "conversation.item.deleted",
    "conversation.item.truncated",
    "conversation.item.input_audio_transcription.completed",
    "conversation.item.input_audio_transcription.delta",
    "conversation.item.input_audio_transcription.failed",
    "response.created",
    "response.done",
    "response.output_item.added",
    "response.output_item.done",
    "response.content_part.added",
    "response.content_part.done",
    "response.output_text.delta",
    "response.output_text.done",
    "response.output_audio.delta",
    "response.output_audio.done",
    "response.output_audio_transcript.delta",
    "response.output_audio_transcript.done",
}


class Elements(HTMLParser):
    """The start tags of a page, and the text within each."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes), []))
        self.open.append(self.found[-1])

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for _, _, texts in self.open:
            texts.append(data.strip())


@pytest.fixture(scope="module")
def elements():
    return Elements(FILES["index.html"]).found


def test_the_page_names_its_files_and_no_others(elements):
    named = {
        value
        for _, attributes, _ in elements
        for name, value in attributes.items()
        if name in ("src", "href") and not value.startswith("data:")
    }
    named |= set(re.findall(r'(?:from |new URL\()"\./([^"]+)"', SCRIPTS))
    assert named == set(FILES) - {"index.html"}


def test_nothing_is_loaded_from_another_host(elements):
    namespace = "http://www.w3.org/2000/svg"
    for name, text in FILES.items():
        assert not re.search(r"\w+://|[\"'(]//", text.replace(namespace, "")), name
    (policy,) = [a["content"] for _, a, _ in elements if "http-equiv" in a]
    # The page's own host, its WebSocket included; no script or style within the page.
    assert policy.startswith("default-src 'self';") and "unsafe" not in policy


def test_events_are_those_of_the_protocol():
    sent = set(re.findall(r'\btype: "(\w+(?:\.\w+)+)"', SCRIPTS))
    handled = set(re.findall(r'"([a-z_]+(?:\.[a-z_]+)+)": \(\) =>', SCRIPTS))
    handled |= set(re.findall(r'\.type === "(\w+\.\w+)"', SCRIPTS))
    assert {"input_audio_buffer.append", "conversation.item.truncate"} <= sent <= CLIENT_EVENTS
    assert {"response.output_audio.delta", "session.created"} <= handled <= SERVER_EVENTS


def test_the_list_of_events_is_that_of_the_official_client():
    types = pytest.importorskip("openai.types.realtime", reason="the package openai is absent")
    for union, events in (("Client", CLIENT_EVENTS), ("Server", SERVER_EVENTS)):
        members = getattr(types, f"Realtime{union}Event").__origin__.__args__
        known = {
            getattr(member.model_fields["type"].annotation, "__args__", ("",))[0]
            for member in members
        }
        assert events <= known


def test_scripts_use_elements_that_the_page_has(elements):
    ids = [attributes["id"] for _, attributes, _ in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'\$\("([\w-]+)"\)', SCRIPTS)) <= set(ids)
    styled = set(re.findall(r"#([a-z][\w-]*)(?=[^{}]*\{)", FILES["style.css"]))
    assert styled <= set(ids)


def test_controls_have_names(elements):
    labels = {a["for"] for tag, a, _ in elements if tag == "label" and "for" in a}
    unlabelled = [
        attributes
        for tag, attributes, texts in elements
        if tag in ("input", "select", "button")
        and not any(texts)
        and attributes.get("id") not in labels
        and attributes.get("type") not in ("radio", "checkbox")
    ]
    assert not unlabelled
    around = [texts for tag, a, texts in elements if tag == "label" and "for" not in a]
    assert len(around) == sum(a.get("type") in ("radio", "checkbox") for _, a, _ in elements)
    assert all(any(texts) for texts in around)


def test_captions_are_read_aloud_and_errors_too(elements):
    found = {attributes.get("id"): attributes for _, attributes, _ in elements}
    assert found["announcer"]["aria-live"] == "polite"
    assert found["notice"]["role"] == "alert" and found["state"]["role"] == "status"


@pytest.mark.parametrize("query", ["prefers-color-scheme: dark", "prefers-reduced-motion: reduce"])
def test_the_style_follows_the_reader(query):
    assert f"({query})" in FILES["style.css"] and f"({query})" in FILES["waves.js"]


def contrast(one, other):
    """Return the contrast of two colours #rrggbb, by WCAG 2.2."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_texts_have_contrast_in_light_and_dark():
    themes = re.findall(r":root \{(.*?)\}", FILES["style.css"], re.DOTALL)
    assert len(themes) == 2
    for theme in themes:
        colours = dict(re.findall(r"--([\w-]+): (#\w{6});", theme))
        for text in ("ink", "muted", "accent", "danger"):
            for ground in ("paper", "raised"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        assert contrast(colours["accent"], colours["accent-ink"]) >= 4.5


def test_an_installation_has_the_files():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["*"]
    for name in FILES:
        assert any(fnmatch.fnmatch(f"serving/page/{name}", pattern) for pattern in patterns), name
