// The audio thread: the microphone's samples go out at 24 kHz, and answers at 24 kHz are played.

const RATE_HZ = 24000;
const CHUNK_SAMPLES = 960; // 40 ms of the microphone in a message
const REPORT_FRAMES = 1024;
const START_SAMPLES = 0.04 * RATE_HZ; // that wait before an answer begins to play
const RESUME_SAMPLES = 0.15 * RATE_HZ; // the same after the network was too slow
const AUDIBLE = 1e-3; // -60 dB of full scale
const CROSSINGS = 16; // zero crossings of the filter on each side
const STEPS = 512; // entries of its table for each crossing

// A sinc in a Hann window, by its distance from the centre in zero crossings.
const KERNEL = Float32Array.from({ length: CROSSINGS * STEPS + 2 }, (_, index) => {
  const x = index / STEPS;
  if (x === 0) return 1;
  if (x >= CROSSINGS) return 0;
  return (Math.sin(Math.PI * x) / (Math.PI * x)) * Math.cos((Math.PI * x) / (2 * CROSSINGS)) ** 2;
});

/** A ring buffer of samples, read at any position between them by a low-pass filter. */
class Ring {
  constructor(sourceHz, targetHz) {
    this.step = sourceHz / targetHz; // samples of the source for one of the target
    this.cutoff = this.step === 1 ? 1 : 0.95 * Math.min(1, 1 / this.step);
    this.reach = Math.ceil(CROSSINGS / this.cutoff); // samples that a value needs on each side
    this.samples = new Float32Array(1 << 16);
    this.clear();
  }

  clear() {
    this.written = 0;
    this.position = 0; // of the next value, in samples of the source
  }

  get waiting() {
    return this.written - this.position;
  }

  push(samples) {
    while (this.waiting + this.reach + samples.length >= this.samples.length) this.grow();
    const mask = this.samples.length - 1;
    for (let i = 0; i < samples.length; i++) this.samples[(this.written + i) & mask] = samples[i];
    this.written += samples.length;
  }

  grow() {
    const before = this.samples;
    this.samples = new Float32Array(2 * before.length);
    const first = Math.max(0, this.written - before.length);
    for (let i = first; i < this.written; i++) {
      this.samples[i & (this.samples.length - 1)] = before[i & (before.length - 1)];
    }
  }

  /** Whether the next value is known; once the stream has `ended`, silence follows it. */
  canRead(ended) {
    return ended ? this.position < this.written : this.position + this.reach < this.written;
  }

  next() {
    const mask = this.samples.length - 1;
    const first = Math.max(0, Math.ceil(this.position - this.reach));
    const last = Math.min(this.written - 1, Math.floor(this.position + this.reach));
    let sum = 0;
    for (let i = first; i <= last; i++) {
      const at = Math.min(CROSSINGS, Math.abs(this.position - i) * this.cutoff) * STEPS;
      const index = Math.floor(at);
      const weight = KERNEL[index] + (at - index) * (KERNEL[index + 1] - KERNEL[index]);
      sum += this.samples[i & mask] * weight;
    }
    this.position += this.step;
    return sum * this.cutoff;
  }
}

/** Posts the microphone as `{samples: Int16Array, peak}`, and the rest when asked to `flush`. */
class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.ring = new Ring(sampleRate, RATE_HZ);
    this.begin();
    this.port.onmessage = () => {
      this.post(true);
    };
  }

  begin() {
    this.chunk = new Int16Array(CHUNK_SAMPLES);
    this.filled = 0;
    this.peak = 0;
  }

  post(last) {
    const samples = this.chunk.slice(0, this.filled);
    this.port.postMessage({ samples, peak: this.peak, last }, [samples.buffer]);
    this.begin();
  }

  process(inputs) {
    const channels = inputs[0];
    if (channels.length === 0) return true;
    const mono = channels[0].map(
      (_, i) => channels.reduce((sum, channel) => sum + channel[i], 0) / channels.length,
    );
    this.ring.push(mono);
    while (this.ring.canRead(false)) {
      const value = Math.max(-1, Math.min(1, this.ring.next()));
      this.peak = Math.max(this.peak, Math.abs(value));
      this.chunk[this.filled++] = Math.round(value * 32767);
      if (this.filled === CHUNK_SAMPLES) this.post(false);
    }
    return true;
  }
}

/**
 * Plays one item at a time and tells how far.
 *
 * Takes `{type: "audio", item, samples}`, `{type: "end", item}` and `{type: "flush"}`; posts
 * `audible`, `progress`, `drained` and `flushed`, with `played` in samples of the item.
 */
class Player extends AudioWorkletProcessor {
  constructor() {
    super();
    this.ring = new Ring(RATE_HZ, sampleRate);
    this.frames = 0;
    this.peak = 0;
    this.reset(null);
    this.port.onmessage = ({ data }) => this.take(data);
  }

  reset(item) {
    this.ring.clear();
    this.item = item;
    this.ended = false;
    this.playing = false;
    this.audible = false;
    this.stopping = false;
    this.needed = START_SAMPLES;
    this.gaps = 0;
  }

  take(message) {
    if (message.type === "flush") {
      this.stopping = true;
    } else if (message.type === "end") {
      this.ended = this.ended || message.item === this.item;
    } else {
      if (message.item !== this.item || this.stopping) {
        if (this.item !== null) this.tell("flushed");
        this.reset(message.item);
      }
      this.ring.push(message.samples);
    }
  }

  tell(type, more = {}) {
    const played = Math.min(Math.round(this.ring.position), this.ring.written);
    this.port.postMessage({ type, item: this.item, played, gaps: this.gaps, ...more });
  }

  process(_, outputs) {
    const output = outputs[0][0];
    if (!this.playing && this.item !== null) {
      this.playing = this.ended || this.ring.waiting >= this.needed + this.ring.reach;
    }
    if (this.playing) this.fill(output);
    if (this.stopping) this.stop(output);
    for (let channel = 1; channel < outputs[0].length; channel++) outputs[0][channel].set(output);
    this.report(output.length);
    return true;
  }

  fill(output) {
    for (let i = 0; i < output.length; i++) {
      if (!this.ring.canRead(this.ended)) return this.runDry();
      output[i] = this.ring.next();
      const size = Math.abs(output[i]);
      this.peak = Math.max(this.peak, size);
      if (!this.audible && size > AUDIBLE) {
        this.audible = true;
        this.tell("audible", { time: currentTime + i / sampleRate });
      }
    }
  }

  runDry() {
    this.playing = false;
    if (this.ended) {
      this.tell("drained");
      this.reset(null);
    } else {
      this.gaps += 1;
      this.needed = RESUME_SAMPLES;
    }
  }

  /** Ends within these frames, without a click. */
  stop(output) {
    for (let i = 0; i < output.length; i++) output[i] *= 1 - (i + 1) / output.length;
    this.tell("flushed");
    this.reset(null);
  }

  report(frames) {
    this.frames += frames;
    if (this.frames < REPORT_FRAMES) return;
    this.frames = 0;
    if (this.item !== null) this.tell("progress", { peak: this.peak });
    this.peak = 0;
  }
}

registerProcessor("capture", Capture);
registerProcessor("player", Player);
