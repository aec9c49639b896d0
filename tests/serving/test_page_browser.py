"""The page in Chromium, with a file as its microphone and a server that follows a script."""

import re
import shutil
import wave

import numpy as np
import pytest

playwright = pytest.importorskip(
    "playwright.sync_api", reason="the package playwright, which drives a browser, is absent"
)
scripted_server = pytest.importorskip(
    "scripted_server", reason="the packages of the extra serve are absent"
)

from scripted_server import (  # noqa: E402
    ANSWER,
    HEARD,
    HIGHEST,
    LOWEST,
    RATE_HZ,
    SPEECH_S,
    Script,
    running,
)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
# Adds up what reaches the loudspeaker.
TAP = """
window.played = {highest: 0, loud: 0};
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (target, ...rest) {
  if (target instanceof AudioDestinationNode) {
    const tap = this.context.createScriptProcessor(256, 1, 1);
    tap.onaudioprocess = ({inputBuffer}) => {
      for (const value of inputBuffer.getChannelData(0)) {
        if (value > window.played.highest) window.played.highest = value;
        if (value > 0.01) window.played.loud += 1;
      }
    };
    connect.call(this, tap);
    connect.call(tap, target);
  }
  return connect.call(this, target, ...rest);
};
"""


@pytest.fixture(scope="module")
def microphone(tmp_path_factory):
    """A file with a second of a buzz like a voice between pauses, which Chromium repeats."""
    path, rate_hz = tmp_path_factory.mktemp("microphone") / "voice.wav", 48_000
    time_s = np.arange(rate_hz) / rate_hz
    voice = sum(np.sin(2 * np.pi * 140 * k * time_s) / k for k in range(1, 12))
    voice = voice * np.sin(4 * np.pi * time_s) ** 2
    pauses = np.zeros(rate_hz // 2), np.zeros(rate_hz)
    samples = np.concatenate([pauses[0], voice / np.abs(voice).max(), pauses[1]])
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate_hz, 0, "NONE", ""))
        file.writeframes((16_000 * samples).astype("<i2").tobytes())
    return path


@pytest.fixture(scope="module")
def browser(microphone):
    if CHROMIUM is None:
        pytest.skip("there is no Chromium; install Debian's package chromium")
    arguments = [
        "--no-sandbox",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone}",
    ]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def script():
    return Script()


@pytest.fixture
def address(script):
    with running(script) as address:
        yield address


@pytest.fixture
def page(browser, address):
    """The page, connected; a fault of its scripts fails the test."""
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.add_init_script(TAP)
    page.goto(address)
    page.wait_for_selector("#state[data-state=open]")
    yield page
    context.close()
    assert not faults


def wait_until(page, condition, what):
    """Wait until a condition of the script holds, while the page goes on."""
    for _ in range(400):
        if condition():
            return
        page.wait_for_timeout(25)
    pytest.fail(f"after 10 s there is no {what}")


def ask(page, seconds=0.6):
    """Hold the space bar and speak."""
    page.keyboard.down("Space")
    page.wait_for_selector("body[data-on=yes]")
    page.wait_for_timeout(1000 * seconds)
    page.keyboard.up("Space")


def test_a_question_is_spoken_and_its_answer_captioned_and_heard(page, script):
    script.speech_s = 0.8
    page.locator("#talk").focus()
    ask(page)
    page.wait_for_selector("#stop", state="visible")
    page.wait_for_selector("#stop", state="hidden")  # it was played
    types = [event["type"] for event in script.events]
    appended = types.count("input_audio_buffer.append")
    last = ["input_audio_buffer.commit", "response.create"]
    assert types == ["session.update"] + ["input_audio_buffer.append"] * appended + last
    assert 0.4 < len(script.samples()) / RATE_HZ < 1.6
    assert page.inner_text(".user .caption") == HEARD
    assert page.inner_text(".assistant .caption") == ANSWER
    assert page.evaluate("played.loud / new AudioContext().sampleRate") == pytest.approx(
        0.8, abs=0.03
    )
    figures = page.inner_text(".assistant .figures")
    for name in ("Heard", "First text", "First audio", "Speech\n0.80 s", "Real-time factor"):
        assert name in figures


def test_pressing_interrupts_and_tells_exactly_how_much_was_played(page, script):
    ask(page)
    wait_until(page, lambda: page.evaluate("played.highest") > 0.2, "speech")
    page.hover("#talk")
    page.mouse.down()
    wait_until(page, lambda: script.sent("conversation.item.truncate"), "truncation")
    (truncation,) = script.sent("conversation.item.truncate")
    page.wait_for_timeout(200)
    before = page.evaluate("played")
    page.wait_for_timeout(300)
    assert page.evaluate("played") == before  # nothing of the answer comes after
    share = (before["highest"] - LOWEST) / (HIGHEST - LOWEST)
    assert truncation["audio_end_ms"] == pytest.approx(1000 * SPEECH_S * share, abs=15)
    kept, unheard = (
        page.text_content(f".assistant .caption .{kind}") for kind in ("kept", "unheard")
    )
    assert kept and unheard and ANSWER.startswith(kept + unheard)
    assert "interrupted after" in page.inner_text(".assistant .note")


def test_a_question_during_the_wait_for_an_answer_takes_its_place(page, script):
    script.delay_s = 0.4
    ask(page, seconds=0.5)
    wait_until(page, lambda: script.sent("response.create"), "question")
    ask(page, seconds=0.7)
    page.wait_for_selector(".user >> nth=1 >> .caption:has-text('?')")
    types = [event["type"] for event in script.events]
    assert types.count("response.cancel") == 1 and types.count("response.create") == 2
    turns = [turn.get_attribute("class").split()[1] for turn in page.locator(".turn").all()]
    assert turns == ["user", "user", "assistant"]
    assert page.locator("#notice").is_hidden()


def test_of_an_answer_of_which_no_word_was_heard_nothing_is_kept(page, script):
    script.speech_s = 30.0
    script.real_time_factor = 0.005
    page.fill("#question", "What is the capital of France?")
    page.keyboard.press("Enter")
    wait_until(page, lambda: page.evaluate("played.highest") > 0, "speech")
    page.keyboard.press("Escape")
    page.wait_for_selector(".assistant .unheard:not(:empty)")
    assert page.text_content(".assistant .kept") == ""
    assert page.locator("#notice").is_hidden()
    (truncation,) = script.sent("conversation.item.truncate")
    assert 0 < truncation["audio_end_ms"] < 1000


def test_a_short_press_begins_a_question_and_the_next_ends_it_or_escape_drops_it(page, script):
    page.locator("#talk").focus()
    page.keyboard.press("Enter")  # as a screen reader does: a click alone
    page.wait_for_selector("#talk:has-text('Press to send')")
    page.keyboard.press("Escape")
    page.wait_for_selector("#talk:has-text('Hold to talk')")
    wait_until(page, lambda: script.sent("input_audio_buffer.clear"), "clearing")
    page.keyboard.press("Space")
    page.wait_for_timeout(400)
    page.keyboard.press("Space")
    wait_until(page, lambda: script.sent("response.create"), "question")
    assert len(script.sent("input_audio_buffer.commit")) == 1


def test_hands_free_finds_questions_and_is_interrupted_by_speech(page, script):
    # The server counts the audio that is spoken by hand too.
    ask(page)
    wait_until(page, lambda: script.sent("response.create"), "question by hand")
    page.click("#stop")
    page.wait_for_selector("#stop", state="hidden")
    script.events.clear()
    page.check("input[value=free]")
    page.click("#talk")
    wait_until(page, lambda: script.sent("conversation.item.truncate"), "interruption by speech")
    assert script.sent("session.update")[-1]["session"]["audio"]["input"]["turn_detection"]
    assert not script.sent("input_audio_buffer.commit") and not script.sent("response.cancel")
    figures = page.inner_text(".assistant .figures >> nth=1")
    # A third of a second of silence ends a question.
    assert 0.3 <= float(re.search(r"End detected\s+([\d.]+) s", figures)[1]) < 2
    script.close_all(1012)
    page.wait_for_selector("#state[data-state=waiting]")
    page.wait_for_selector("#state[data-state=open]")
    script.events.clear()
    wait_until(page, lambda: script.sent("input_audio_buffer.append"), "audio of the new session")
    page.click("#talk")
    page.wait_for_selector("body[data-on=no]")
    wait_until(page, lambda: script.sent("input_audio_buffer.clear"), "clearing")


def test_a_question_that_comes_before_the_answer_begins_replaces_the_one_before(page, script):
    script.speech_s, script.delay_s = 0.8, 1.0
    ask(page)
    wait_until(page, lambda: script.sent("response.create"), "first question")
    ask(page)
    wait_until(page, lambda: len(script.sent("response.create")) == 2, "second question")
    page.wait_for_selector("#stop", state="visible")
    page.wait_for_selector("#stop", state="hidden")
    names = ("input_audio_buffer.commit", "response.create", "response.cancel")
    wanted = [names[0], names[1], names[2], names[0], names[1]]
    assert [event["type"] for event in script.events if event["type"] in names] == wanted
    assert page.locator("#notice").is_hidden()
    assert page.locator(".assistant").count() == 1
    assert page.inner_text(".assistant .caption") == ANSWER
    # What was heard is the second question's.
    first, second = page.locator(".user").all()
    assert second.locator(".caption").inner_text() == HEARD and HEARD not in first.inner_text()
    assert "stopped" in first.inner_text()


def test_typed_questions_and_text_alone_need_no_microphone(page, script):
    page.check("#text-only input")
    page.fill("#question", "What is the capital of France?")
    page.keyboard.press("Enter")
    page.wait_for_selector("#stop", state="visible")
    page.wait_for_selector("#stop", state="hidden")
    assert page.inner_text(".assistant .caption") == ANSWER
    assert "First text" in page.inner_text(".figures summary")
    assert script.sent("session.update")[-1]["session"]["output_modalities"] == ["text"]
    (item,) = [event["item"] for event in script.sent("conversation.item.create")]
    assert item["content"] == [{"type": "input_text", "text": "What is the capital of France?"}]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_dropped_connection_is_told_and_the_conversation_goes_on(page, script):
    script.real_time_factor = 0.0
    page.check("#text-only input")
    page.fill("#question", "One?")
    page.keyboard.press("Enter")
    page.wait_for_selector(f".assistant :text({ANSWER!r})")
    script.events.clear()
    script.close_all(1012, "the server restarts")
    page.wait_for_selector("#notice", state="visible")
    assert "The connection was lost (the server restarts)" in page.inner_text("#notice")
    page.wait_for_selector("#state[data-state=open]")
    page.wait_for_selector("#notice", state="hidden")
    wait_until(page, lambda: len(script.sent("conversation.item.create")) == 2, "restored items")
    items = [event["item"] for event in script.sent("conversation.item.create")]
    texts = [(item["role"], item["content"][0]["text"]) for item in items]
    assert texts == [("user", "One?"), ("assistant", ANSWER)]


def test_a_key_is_asked_for_only_where_the_server_wants_one(browser, address, script):
    script.key = "right"
    page = browser.new_context().new_page()
    page.goto(address)
    for key, sentence in (("wrong", "asks for an API key"), ("right", "did not take this key")):
        page.wait_for_selector(f"#key-dialog :text({sentence!r})", state="visible")
        page.fill("#key", key)
        page.keyboard.press("Enter")
    page.wait_for_selector("#state[data-state=open]")
    page.context.close()


WORKLET = """async ({rate, frequency}) => {
  const kinds = {}, posted = [];
  globalThis.sampleRate = rate;
  globalThis.currentTime = 0;
  globalThis.AudioWorkletProcessor = class {
    port = {postMessage: (message) => posted.push(message)};
  };
  globalThis.registerProcessor = (name, kind) => { kinds[name] = kind; };
  await import("/worklet.js?" + rate + frequency);
  const sine = (hz, count, at) => Float32Array.from(
    {length: count}, (_, i) => 0.5 * Math.sin(2 * Math.PI * frequency * (at + i) / hz));
  const capture = new kinds.capture(), player = new kinds.player(), heard = [];
  for (let at = 0; at < rate; at += 128) capture.process([[sine(rate, 128, at)]]);
  for (let at = 0; at < 24000; at += 480)
    player.take({type: "audio", item: "a", samples: sine(24000, 480, at)});
  player.take({type: "end", item: "a"});
  while (posted.at(-1)?.type !== "drained") {
    const output = new Float32Array(128);
    player.process([], [[output]]);
    heard.push(...output);
  }
  return {
    captured: posted.flatMap(({samples}) => samples ? [...samples] : []),
    heard, played: posted.at(-1).played,
  };
}"""


def noise_db(samples, rate_hz, frequency_hz):
    """Return the level of what is not a sine of amplitude 0.5, against it."""
    time_s = np.arange(len(samples)) / rate_hz
    basis = np.stack([f(2 * np.pi * frequency_hz * time_s) for f in (np.sin, np.cos)], 1)
    weights = np.linalg.lstsq(basis, samples, rcond=None)[0]
    assert np.hypot(*weights) == pytest.approx(0.5, abs=0.01)
    return 20 * np.log10(np.std(samples - basis @ weights) / np.std(basis @ weights))


def test_resampling_keeps_tones_and_drops_what_the_rate_cannot_hold(page):
    for rate in (24_000, 44_100, 48_000):
        found = page.evaluate(WORKLET, {"rate": rate, "frequency": 1000})
        captured, heard = np.array(found["captured"]) / 32767, np.array(found["heard"])
        assert found["played"] == 24_000
        assert noise_db(captured[500:-500], 24_000, 1000) < -60
        assert noise_db(heard[500 : rate - 500], rate, 1000) < -60
    found = page.evaluate(WORKLET, {"rate": 48_000, "frequency": 15_000})
    assert np.abs(found["captured"][500:-500]).max() < 33  # -60 dB
