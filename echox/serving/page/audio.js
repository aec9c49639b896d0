// The microphone and the loudspeaker of the page, at 24 kHz.

export const RATE_HZ = 24000;
const FLUSH_MS = 250;

/** An error whose message is a sentence for the user. */
export class AudioError extends Error {}

/** Opens the audio devices and passes samples both ways. */
export class Devices {
  /**
   * @param {object} handlers `onChunk({samples, peak, last})` takes the microphone's audio,
   *   `onPlayer(message)` what the player tells (see worklet.js), `onLost()` is called when the
   *   microphone was disconnected.
   */
  constructor({ onChunk, onPlayer, onLost }) {
    this.onChunk = onChunk;
    this.onPlayer = onPlayer;
    this.onLost = onLost;
    this.microphoneId = "";
    this.speakerId = "";
    this.context = null;
    this.player = null;
    this.stream = null;
    this.capture = null;
    this.opening = null; // promise, while the loudspeaker is opened and after
    this.asking = null; // promise, while the microphone is opened
    this.progress = null; // {item, played} of the player
  }

  static get canChooseSpeaker() {
    return "AudioContext" in window && "setSinkId" in AudioContext.prototype;
  }

  /** Opens the loudspeaker; has to be called within a gesture of the user. */
  async openOutput() {
    this.opening ??= this.makePlayer().catch((error) => {
      this.opening = null;
      throw error;
    });
    await this.opening;
    if (this.context.state !== "running") await this.context.resume();
  }

  async makePlayer() {
    if (!("AudioWorkletNode" in window)) {
      throw new AudioError("This browser plays and records only on https or localhost pages.");
    }
    this.context = new AudioContext({ latencyHint: "interactive" });
    await this.context.audioWorklet.addModule(new URL("./worklet.js", import.meta.url));
    this.player = new AudioWorkletNode(this.context, "player", { numberOfInputs: 0 });
    this.player.port.onmessage = ({ data }) => this.takePlayer(data);
    this.player.connect(this.context.destination);
    // The speaker that was chosen in an earlier visit may be gone.
    await this.useSpeaker(this.speakerId).catch(() => this.useSpeaker(""));
  }

  async useSpeaker(deviceId) {
    this.speakerId = deviceId;
    if (!this.context || !Devices.canChooseSpeaker) return;
    try {
      await this.context.setSinkId(deviceId);
    } catch {
      throw new AudioError("This speaker cannot be used; choose another one in the settings.");
    }
  }

  get isMicrophoneOpen() {
    return this.stream !== null;
  }

  /** Opens the microphone; the browser may ask the user for it. */
  async openMicrophone() {
    if (this.isMicrophoneOpen) return;
    this.asking ??= this.makeCapture().finally(() => {
      this.asking = null;
    });
    await this.asking;
  }

  async makeCapture() {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new AudioError("This browser opens the microphone only on https or localhost pages.");
    }
    const wanted = { echoCancellation: true, noiseSuppression: true, autoGainControl: true };
    if (this.microphoneId) wanted.deviceId = { ideal: this.microphoneId };
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: wanted });
    } catch (error) {
      throw new AudioError(microphoneSentence(error));
    }
    await this.openOutput();
    this.stream = stream;
    // A device that is unplugged ends its track.
    stream.getAudioTracks()[0].addEventListener("ended", () => this.lose(stream));
    this.source = this.context.createMediaStreamSource(stream);
    this.capture = new AudioWorkletNode(this.context, "capture", { numberOfOutputs: 0 });
    this.capture.port.onmessage = ({ data }) => this.onChunk(data);
    this.source.connect(this.capture);
  }

  lose(stream) {
    if (this.stream !== stream) return;
    this.closeMicrophone();
    this.onLost();
  }

  closeMicrophone() {
    if (!this.stream) return;
    this.source.disconnect();
    this.capture.port.onmessage = null;
    for (const track of this.stream.getTracks()) track.stop();
    this.stream = this.capture = this.source = null;
  }

  async useMicrophone(deviceId) {
    this.microphoneId = deviceId;
    if (!this.isMicrophoneOpen) return;
    this.closeMicrophone();
    await this.openMicrophone();
  }

  /** Asks for what the microphone has gathered; it comes as a chunk with `last`. */
  flushMicrophone() {
    this.capture?.port.postMessage("flush");
  }

  play(item, samples) {
    this.player?.port.postMessage({ type: "audio", item, samples }, [samples.buffer]);
  }

  endPlayback(item) {
    this.player?.port.postMessage({ type: "end", item });
  }

  takePlayer(message) {
    if (message.item !== null) this.progress = { item: message.item, played: message.played };
    if (message.type === "flushed") this.flushed?.();
    this.onPlayer(message);
  }

  /**
   * Stops what plays at once.
   *
   * @returns {Promise<number>} how many samples of the item were played.
   */
  async flushPlayback(item) {
    await new Promise((resolve) => {
      this.flushed = resolve;
      setTimeout(resolve, FLUSH_MS); // a suspended audio clock does not answer
      this.player.port.postMessage({ type: "flush" });
    });
    return this.progress?.item === item ? this.progress.played : 0;
  }

  /** When a moment of the audio clock reaches the loudspeaker, on `performance.now()`. */
  timeHeard(contextTime) {
    const stamp = this.context.getOutputTimestamp?.();
    if (stamp?.performanceTime > 0) {
      return stamp.performanceTime + 1000 * (contextTime - stamp.contextTime);
    }
    const latency = this.context.outputLatency ?? this.context.baseLatency ?? 0;
    return performance.now() + 1000 * (contextTime - this.context.currentTime + latency);
  }

  /** The devices by kind; they have names once the microphone was allowed. */
  async list() {
    const found = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
    const of = (kind) => found.filter((device) => device.kind === kind && device.deviceId);
    return { microphones: of("audioinput"), speakers: of("audiooutput") };
  }
}

/** A sentence for the user about a fault of the audio devices. */
export function sentenceOf(error) {
  if (error instanceof AudioError) return error.message;
  return `The audio could not be opened: ${error.message || error.name}.`;
}

function microphoneSentence(error) {
  if (error.name === "NotAllowedError") {
    return "The microphone is not allowed for this page; allow it in the browser, or type.";
  }
  if (error.name === "NotFoundError") {
    return "There is no microphone; connect one, choose another in the settings, or type.";
  }
  return "The microphone is in use by another program; close that program, or type.";
}

/** Turns 16-bit samples into base64, little-endian as the protocol has it. */
export function toBase64(samples) {
  const bytes = new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength);
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) {
    text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  }
  return btoa(text);
}

/** Turns base64 of 16-bit samples into floats in [-1, 1]. */
export function fromBase64(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from(
    { length: bytes.length >> 1 },
    (_, i) => view.getInt16(2 * i, true) / 32768,
  );
}
