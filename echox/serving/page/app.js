// The page: what the user does, what the server tells, and what is shown of both.

import { Devices, RATE_HZ, fromBase64, sentenceOf, toBase64 } from "./audio.js";
import { Connection } from "./connection.js";
import { Controls } from "./controls.js";
import { Conversation } from "./conversation.js";
import { Latency } from "./latency.js";
import { Waves } from "./waves.js";

const HOLD_MS = 350; // a shorter press begins a recording that the next press ends
const SHORTEST_SAMPLES = 0.2 * RATE_HZ;
const LONGEST_SAMPLES = 58 * RATE_HZ; // the server takes a minute
const RESTORED_TURNS = 20;
const QUIET_EVENTS = 100;
const LATEST_DETECTION_MS = 10_000;

const $ = (id) => document.getElementById(id);

/** An answer from its creation until it was played or interrupted. */
class Answer {
  constructor(id, turn, latency) {
    this.id = id;
    this.turn = turn;
    this.latency = latency;
    this.item = null;
    this.samples = 0; // received
    this.isDone = false; // the server has sent all of it
  }
}

class Page {
  constructor() {
    this.mode = "press";
    this.speaks = true;
    this.isPressed = false;
    this.pressedAt = 0;
    this.recording = null; // {samples, turn}, while a question is spoken by hand
    this.isListening = false; // hands free
    this.answer = null;
    this.truncated = null; // answer, until the server has told what it kept of it
    this.interrupting = Promise.resolve();
    this.latest = null; // turn of the question that was sent last
    this.unnamed = new Map(); // id of a commit -> turn of the question, until its item is known
    this.questions = new Map(); // item -> turn
    this.question = null; // {end, detected, isTyped}, of the next answer
    this.requested = null; // id of the request whose answer the server has not begun yet
    this.dropped = new Set(); // ids of requests that were cancelled before
    this.requests = 0;
    this.sentQuietly = 0;
    this.restored = []; // items for the next session
    this.clock = []; // {samples, time} of the audio that was sent in this session
    this.clockSamples = 0;
    this.quiet = new Map(); // id of an event -> what to do if the server refuses it
    this.controls = new Controls(this);
    this.conversation = new Conversation(
      $("conversation"),
      document.querySelector("main"),
      $("announcer"),
    );
    this.waves = new Waves($("waves"));
    this.devices = new Devices({
      onChunk: (chunk) => this.takeChunk(chunk),
      onPlayer: (message) => this.takePlayer(message),
      onLost: () => this.loseMicrophone(),
    });
    this.connection = new Connection({
      onEvent: (event) => this.takeEvent(event),
      onState: (name, details) => this.showConnection(name, details),
      onReady: () => this.beginSession(),
      onSent: (event) => this.countAudio(event),
    });
  }

  start() {
    this.controls.start();
    this.show();
    this.connection.connect();
  }

  // The session

  beginSession() {
    this.clock = [];
    this.clockSamples = 0;
    this.updateSession();
    for (const item of this.restored) {
      this.sendQuietly({ type: "conversation.item.create", item });
    }
    this.restored = [];
  }

  updateSession() {
    if (!this.connection.isOpen) return; // a session that begins sends it
    const format = { type: "audio/pcm", rate: RATE_HZ };
    const isFree = this.mode === "free";
    this.connection.send({
      type: "session.update",
      session: {
        type: "realtime",
        output_modalities: [this.speaks ? "audio" : "text"],
        audio: {
          input: {
            format,
            transcription: { model: "echox" },
            turn_detection: isFree ? { type: "server_vad" } : null,
          },
          output: { format },
        },
      },
    });
  }

  /** Sends an event that the server may refuse, which is no fault that a user should see. */
  sendQuietly(event, onRefused = () => {}) {
    const id = `quiet_${(this.sentQuietly += 1)}`;
    this.quiet.set(id, onRefused);
    if (this.quiet.size > QUIET_EVENTS) this.quiet.delete(this.quiet.keys().next().value);
    this.connection.send({ ...event, event_id: id });
  }

  takeEvent(event) {
    const handlers = {
      "input_audio_buffer.speech_started": () => this.beginSpeech(event),
      "input_audio_buffer.speech_stopped": () => this.endSpeech(event),
      "input_audio_buffer.committed": () => this.nameQuestion(event.item_id),
      "conversation.item.input_audio_transcription.completed": () => this.hear(event),
      "conversation.item.input_audio_transcription.failed": () => this.mishear(event),
      "conversation.item.retrieved": () => this.keep(event.item),
      "response.created": () => this.beginAnswer(event.response),
      "response.output_item.added": () => this.nameAnswer(event),
      "response.output_audio_transcript.delta": () => this.writeAnswer(event),
      "response.output_text.delta": () => this.writeAnswer(event),
      "response.output_audio.delta": () => this.playAnswer(event),
      "response.done": () => this.endAnswer(event.response),
      error: () => this.showError(event.error),
    };
    handlers[event.type]?.();
  }

  showError({ message, event_id: id }) {
    this.unnamed.delete(id);
    if (id === this.requested) this.requested = null;
    if (this.dropped.delete(id)) return;
    if (this.quiet.has(id)) {
      this.quiet.get(id)();
      this.quiet.delete(id);
      return;
    }
    const sentence = message.charAt(0).toUpperCase() + message.slice(1);
    this.notify(/[.!?]$/.test(sentence) ? sentence : `${sentence}.`);
    if (this.mode === "press" && !this.recording) this.conversation.settle("failed");
  }

  // The question

  /** @param {object} how `isClick`: it was begun without holding anything. */
  async press({ isClick = false } = {}) {
    this.isPressed = !isClick;
    this.pressedAt = performance.now();
    if (this.mode === "free") return this.toggleListening();
    if (this.recording) return this.finishRecording();
    this.notify("");
    const wasOpen = this.devices.isMicrophoneOpen;
    if (!(await this.openMicrophone()) || this.recording) return;
    if (!wasOpen && !isClick && !this.isPressed) {
      this.notify("The microphone is ready; hold the button and speak.");
      return;
    }
    this.interrupt();
    this.recording = { samples: 0, turn: this.conversation.add("user"), isEnding: false };
    this.show();
  }

  release() {
    if (!this.isPressed) return;
    this.isPressed = false;
    const isHeld = performance.now() - this.pressedAt > HOLD_MS;
    if (this.recording && isHeld) this.finishRecording();
    else this.show();
  }

  async openMicrophone() {
    try {
      await this.devices.openMicrophone();
      await this.controls.listDevices();
      return true;
    } catch (error) {
      this.notify(sentenceOf(error));
      this.show();
      return false;
    }
  }

  async openOutput() {
    try {
      await this.devices.openOutput();
    } catch (error) {
      this.notify(sentenceOf(error));
    }
  }

  loseMicrophone() {
    this.isListening = false;
    this.dropRecording();
    this.notify("The microphone was disconnected; connect it again, or choose another one.");
    this.show();
  }

  async toggleListening() {
    this.notify("");
    if (this.isListening) {
      this.isListening = false;
      this.forgetSpeech();
      this.connection.send({ type: "input_audio_buffer.clear" });
      this.devices.closeMicrophone();
    } else if (await this.openMicrophone()) {
      this.isListening = true;
    }
    this.show();
  }

  takeChunk({ samples, peak, last }) {
    this.showLevel(peak);
    if (this.recording || (this.isListening && this.connection.isOpen)) {
      this.waves.push("user", peak);
      if (samples.length > 0) this.append(samples);
    }
    if (last && this.recording?.isEnding) this.sendRecording();
  }

  append(samples) {
    this.connection.send({ type: "input_audio_buffer.append", audio: toBase64(samples) });
    if (this.isListening) return;
    this.recording.samples += samples.length;
    if (this.recording.samples > LONGEST_SAMPLES && !this.recording.isEnding) {
      this.notify("A question has at most a minute, so this one was sent.");
      this.finishRecording();
    }
  }

  /** Notes when audio was sent: the server tells places in all of it. */
  countAudio({ type, audio }) {
    if (type !== "input_audio_buffer.append") return;
    this.clockSamples += fromBase64(audio).length;
    this.clock.push({ samples: this.clockSamples, time: performance.now() });
    if (this.clock.length > 1000) this.clock.splice(0, 500);
  }

  finishRecording() {
    if (this.recording.isEnding) return;
    this.recording.isEnding = true;
    this.recording.end = performance.now();
    this.devices.flushMicrophone();
    this.show();
  }

  async sendRecording() {
    const { samples, turn, end } = this.recording;
    if (samples < SHORTEST_SAMPLES) {
      this.dropRecording();
      this.notify("That was too short; hold the button while you speak.");
      return;
    }
    this.recording = null;
    this.question = { end };
    this.latest = turn;
    this.show();
    this.interrupt({ next: turn }); // an answer that came while the question was spoken
    await this.interrupting; // so that the conversation holds what was heard alone
    const id = `commit_${(this.requests += 1)}`;
    this.unnamed.set(id, turn);
    this.connection.send({ type: "input_audio_buffer.commit", event_id: id });
    this.requestAnswer();
  }

  dropRecording() {
    if (!this.recording) return;
    this.conversation.remove(this.recording.turn);
    this.recording = null;
    this.connection.send({ type: "input_audio_buffer.clear" });
    this.show();
  }

  async ask(text) {
    this.notify("");
    this.dropRecording();
    this.interrupt();
    if (this.speaks) await this.openOutput();
    await this.interrupting;
    this.latest = this.conversation.add("user", text);
    this.question = { end: performance.now(), isTyped: true };
    const content = [{ type: "input_text", text }];
    const item = { type: "message", role: "user", content };
    this.connection.send({ type: "conversation.item.create", item });
    this.requestAnswer();
    this.show();
  }

  requestAnswer() {
    this.requested = `request_${(this.requests += 1)}`;
    this.connection.send({ type: "response.create", event_id: this.requested });
  }

  /** Cancels the answer that was asked for and has not begun: two at a time are refused. */
  dropRequest() {
    this.dropped.add(this.requested);
    this.requested = null;
    this.sendQuietly({ type: "response.cancel" });
  }

  forgetRequests() {
    this.requested = null;
    this.dropped.clear();
    this.unnamed.clear();
  }

  beginSpeech({ item_id: item }) {
    if (!this.isListening) return;
    this.interrupt({ isCancelled: true });
    this.questions.set(item, this.conversation.add("user"));
    this.show();
  }

  endSpeech({ audio_end_ms: end_ms }) {
    const detected = performance.now();
    const sent = this.clock.find(({ samples }) => samples >= (end_ms * RATE_HZ) / 1000);
    const isKnown = sent && detected - sent.time < LATEST_DETECTION_MS;
    this.question = { end: isKnown ? sent.time : detected, detected };
  }

  /** Removes the question that was begun and is not going to be sent. */
  forgetSpeech() {
    for (const [item, turn] of this.questions) {
      if (turn.text || turn.isSent) continue;
      this.conversation.remove(turn);
      this.questions.delete(item);
    }
  }

  nameQuestion(item) {
    if (this.questions.has(item)) {
      this.questions.get(item).isSent = true;
      return;
    }
    // Items are told in the order of their commits.
    const [first] = this.unnamed;
    if (!first) return;
    const [id, turn] = first;
    this.unnamed.delete(id);
    turn.isSent = true;
    this.questions.set(item, turn);
  }

  hear({ item_id: item, transcript }) {
    const turn = this.questions.get(item);
    if (!turn || turn.text) return;
    this.answer?.latency.mark("heard");
    turn.mark("");
    turn.write(transcript.trim());
    this.conversation.announce(`You: ${transcript}`);
    this.measure(this.answer);
  }

  mishear({ item_id: item }) {
    this.questions.get(item)?.mark("speech without captions");
  }

  // The answer

  beginAnswer({ id }) {
    const [dropped] = this.dropped;
    if (this.dropped.delete(dropped)) return;
    this.requested = null;
    if (this.answer) this.interrupt({ isCancelled: true });
    const latency = new Latency(this.question ?? { end: performance.now() });
    this.question = null;
    const turn = this.conversation.add("assistant");
    this.answer = new Answer(id, turn, latency);
    if (this.recording) {
      // The user has gone on to the next question.
      this.interrupt();
      this.conversation.remove(turn);
    }
    this.show();
  }

  nameAnswer(event) {
    const answer = this.current(event);
    if (answer) answer.item = event.item.id;
  }

  /** The answer that an event belongs to, unless it was interrupted. */
  current({ response_id: id }) {
    return this.answer?.id === id ? this.answer : null;
  }

  writeAnswer(event) {
    const answer = this.current(event);
    if (!answer) return;
    answer.latency.mark("text");
    answer.turn.write(answer.turn.text + event.delta);
    this.measure(answer);
  }

  playAnswer(event) {
    const answer = this.current(event);
    if (!answer || !this.devices.player) return;
    answer.item = event.item_id;
    const samples = fromBase64(event.delta);
    answer.samples += samples.length;
    answer.latency.addSpeech(samples.length / RATE_HZ);
    this.devices.play(answer.item, samples);
    this.show();
  }

  endAnswer(response) {
    const answer = this.current({ response_id: response.id });
    if (!answer) return;
    answer.isDone = true;
    answer.latency.isComplete = true;
    if (response.status === "failed") {
      const message = response.status_details?.error?.message ?? "the answer failed; ask again";
      this.showError({ message });
    }
    const notes = { failed: "failed", cancelled: "stopped", incomplete: "cut at its limit" };
    const note = notes[response.status] ?? (answer.turn.text ? "" : "no answer");
    if (note) answer.turn.mark(note);
    this.conversation.settle("nothing was understood");
    if (answer.samples > 0) this.devices.endPlayback(answer.item);
    else this.finishAnswer(answer);
    this.measure(answer);
    this.show();
  }

  finishAnswer(answer) {
    if (this.answer === answer) this.answer = null;
    // Not sooner, so that a screen reader does not speak at the same time.
    this.conversation.announce(`EchoX: ${answer.turn.text}`);
    this.measure(answer);
    this.show();
  }

  /**
   * Stops the answer, and tells the server how much of it was played.
   *
   * @param {object} how `isCancelled`: the server has stopped it itself; `next`: turn of the question
   *   that is sent next.
   */
  interrupt({ isCancelled = false, next = this.recording?.turn } = {}) {
    const answer = this.answer;
    if (this.requested) this.dropRequest();
    else if (!answer) return;
    this.conversation.settle("stopped", next);
    if (!answer) return;
    this.answer = null;
    if (!answer.isDone && !isCancelled) {
      this.sendQuietly({ type: "response.cancel", response_id: answer.id });
    }
    answer.turn.mark("stopped");
    if (answer.samples > 0) this.interrupting = this.truncate(answer);
    this.show();
  }

  async truncate(answer) {
    const played = Math.min(await this.devices.flushPlayback(answer.item), answer.samples);
    const end_ms = Math.floor((1000 * played) / RATE_HZ);
    answer.turn.mark(`interrupted after ${(end_ms / 1000).toFixed(1)} s`);
    const item_id = answer.item;
    this.sendQuietly({
      type: "conversation.item.truncate",
      item_id,
      content_index: 0,
      audio_end_ms: end_ms,
    });
    this.truncated = answer;
    // Of an answer of which no word was heard nothing is kept.
    const lose = () => answer.turn.keep("");
    this.sendQuietly({ type: "conversation.item.retrieve", item_id }, lose);
  }

  keep({ id, content }) {
    if (this.truncated?.item !== id) return;
    this.truncated.turn.keep(content[0]?.text ?? content[0]?.transcript ?? "");
    this.truncated = null;
  }

  takePlayer(message) {
    const answer = this.answer?.item === message.item ? this.answer : null;
    if (message.type === "progress") this.waves.push("assistant", message.peak);
    if (message.type === "audible" && answer) {
      answer.latency.mark("audio", this.devices.timeHeard(message.time));
      this.measure(answer);
      this.show();
    }
    if (message.type === "drained" && answer) {
      if (message.gaps > 0) answer.turn.mark("with gaps: the audio came too late");
      this.finishAnswer(answer);
    }
  }

  measure(answer) {
    answer?.turn.measure(answer.latency.rows());
  }

  // What is shown

  show() {
    const isEnding = this.recording?.isEnding;
    const isRecording = Boolean(this.recording) && !isEnding;
    const isFree = this.mode === "free";
    const isOn = isFree ? this.isListening : isRecording;
    const talk = $("talk");
    talk.textContent = this.talkLabel(isFree, isRecording);
    document.body.dataset.on = isOn ? "yes" : "no";
    $("stop").hidden = !this.answer && !isRecording;
    $("stop").textContent = isRecording ? "Drop" : "Stop";
    $("welcome").hidden = this.conversation.turns.length > 0;
    $("how").textContent = isFree
      ? "Start listening and speak; an answer begins when you pause."
      : "Hold the button or the space bar while you speak. Or type.";
    if (!this.devices.isMicrophoneOpen) this.showLevel(0);
  }

  talkLabel(isFree, isRecording) {
    if (isFree) return this.isListening ? "Listening · press to end" : "Start listening";
    if (isRecording) return this.isPressed ? "Release to send" : "Press to send";
    return this.answer ? "Hold to interrupt" : "Hold to talk";
  }

  showLevel(peak) {
    const decibels = peak > 0 ? Math.max(-60, Math.round(20 * Math.log10(peak))) : -60;
    const level = $("level");
    level.setAttribute("aria-valuenow", String(decibels));
    level.style.setProperty("--level", String(1 + decibels / 60));
  }

  notify(sentence) {
    const notice = $("notice");
    notice.querySelector("span").textContent = sentence;
    notice.hidden = sentence === "";
  }

  showConnection(name, { seconds, reason, wrong, wasOpen, unsent }) {
    const words = {
      connecting: "Connecting",
      open: "Connected",
      waiting: `Connecting again in ${seconds} s`,
      asleep: "Paused",
      key: "API key needed",
    };
    $("state").textContent = words[name];
    $("state").dataset.state = name;
    if (name === "open") this.endNotice();
    if (name === "waiting" || name === "asleep" || name === "key") this.endSession();
    if (unsent && this.latest) this.loseQuestion(this.latest);
    if (name === "waiting") this.explainLoss(reason, wasOpen);
    if (name === "key") this.controls.askForKey(wrong);
    if (name === "asleep" && this.isListening) this.connection.connect();
    $("forget-key").hidden = !Connection.hasKey;
  }

  explainLoss(reason, wasOpen) {
    const what = wasOpen ? "The connection was lost" : "The server does not answer";
    this.notify(`${what}${reason ? ` (${reason})` : ""}; the page connects again by itself.`);
    this.isLossShown = true;
  }

  endNotice() {
    if (this.isLossShown) this.notify("");
    this.isLossShown = false;
  }

  loseQuestion(turn) {
    turn.isSent = false;
    turn.mark("not sent");
  }

  /** Keeps what the next session has to know, and stops what belonged to this one. */
  endSession() {
    this.recording &&= (this.conversation.remove(this.recording.turn), null);
    this.forgetSpeech();
    if (this.answer && !this.answer.isDone) {
      this.answer.turn.mark("cut off: the connection was lost");
      this.devices.endPlayback(this.answer.item);
      this.answer = null;
    }
    this.forgetRequests();
    this.conversation.settle("the connection was lost");
    this.restored = this.conversation.items(RESTORED_TURNS);
    this.show();
  }

  stop() {
    if (this.recording) this.dropRecording();
    else this.interrupt();
  }

  useMode(mode) {
    if (this.isListening) this.toggleListening();
    this.dropRecording();
    this.mode = mode;
    this.controls.saveSettings();
    this.updateSession();
    this.show();
  }

  /** Begins anew: the server forgets a conversation with its session. */
  clear() {
    $("settings").close();
    this.dropRecording();
    this.interrupt();
    this.conversation.clear();
    this.questions.clear();
    this.restored = [];
    this.forgetRequests();
    this.connection.renew();
    this.show();
  }
}

new Page().start();
