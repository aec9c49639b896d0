// When an answer began, counted from the end of the question.

const seconds = (milliseconds) => `${(milliseconds / 1000).toFixed(2)} s`;

/** The times of one answer, on `performance.now()`. */
export class Latency {
  /**
   * @param {object} question `end` of the question; `detected`, when voice activity said so, null
   *   without it; `isTyped`.
   */
  constructor({ end, detected = null, isTyped = false }) {
    this.end = end;
    this.isTyped = isTyped;
    this.times = { detected };
    this.lastAudio = null;
    this.speechSeconds = 0;
    this.isComplete = false; // whether that is all of the answer's speech
    this.created = performance.now();
  }

  /** Notes the first time of something; later ones do not count. */
  mark(name, time = performance.now()) {
    this.times[name] ??= time;
  }

  addSpeech(secondsOfSpeech) {
    this.speechSeconds += secondsOfSpeech;
    this.lastAudio = performance.now();
  }

  /** Names and values; the first is the one that matters most. */
  rows() {
    const after = this.isTyped ? "after sending" : "after the end of speech";
    const parts = [
      ["End detected", this.times.detected],
      ["Heard", this.times.heard],
      ["First text", this.times.text],
      ["First audio", this.times.audio],
    ].filter(([, time]) => time != null);
    if (parts.length === 0) return [];
    const rows = parts.map(([name, time]) => [name, seconds(Math.max(0, time - this.end))]);
    const [name, value] = rows[rows.length - 1];
    const summary = [name, `${value} ${after}`];
    if (this.speechSeconds > 0) rows.push(["Speech", seconds(1000 * this.speechSeconds)]);
    if (this.speechSeconds > 0 && this.isComplete) {
      const factor = (this.lastAudio - this.created) / 1000 / this.speechSeconds;
      rows.push(["Real-time factor", factor.toFixed(2)]);
    }
    return [summary, ...rows];
  }
}
