// The waveform of both sides over the last seconds.

const SECONDS = 8;
const BAR_PX = 2;
const GAP_PX = 2;
const FLOOR_DB = -54;
const STILL_MS = 250; // between frames where motion is to be reduced

/** A peak in [0, 1] as a height in [0, 1], by its level in dB. */
function height(peak) {
  return peak > 0 ? Math.max(0, 1 - (20 * Math.log10(peak)) / FLOOR_DB) : 0;
}

/** Draws the peaks of two sides on a canvas, the newest at the right. */
export class Waves {
  /** @param {HTMLCanvasElement} canvas its CSS variables `--user` and `--assistant` are colours. */
  constructor(canvas) {
    this.canvas = canvas;
    this.peaks = { user: [], assistant: [] };
    this.isStill = matchMedia("(prefers-reduced-motion: reduce)");
    this.isDrawing = false;
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  push(side, peak) {
    this.peaks[side].push({ time: performance.now(), peak });
    if (this.isDrawing) return;
    this.isDrawing = true;
    this.next();
  }

  next() {
    const again = () => {
      const oldest = performance.now() - 1000 * SECONDS;
      for (const side in this.peaks) {
        this.peaks[side] = this.peaks[side].filter(({ time }) => time > oldest);
      }
      this.draw();
      this.isDrawing = Object.values(this.peaks).some((peaks) => peaks.length > 0);
      if (this.isDrawing) this.next();
    };
    if (this.isStill.matches) setTimeout(again, STILL_MS);
    else requestAnimationFrame(again);
  }

  draw() {
    const { clientWidth: width, clientHeight: tall } = this.canvas;
    const scale = devicePixelRatio;
    if (this.canvas.width !== Math.round(width * scale)) {
      this.canvas.width = Math.round(width * scale);
      this.canvas.height = Math.round(tall * scale);
    }
    const context = this.canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, tall);
    const style = getComputedStyle(this.canvas);
    context.fillStyle = style.getPropertyValue("--line");
    context.fillRect(0, tall / 2 - 0.5, width, 1);
    for (const side in this.peaks) {
      context.fillStyle = style.getPropertyValue(`--${side}`);
      if (this.isStill.matches) this.drawLevel(context, side, width, tall);
      else this.drawBars(context, side, width, tall);
    }
  }

  drawBars(context, side, width, tall) {
    const count = Math.floor(width / (BAR_PX + GAP_PX));
    const each = (1000 * SECONDS) / count; // milliseconds of a bar
    // Bars stand at fixed times, so that their heights do not flicker while they move.
    const newest = Math.floor(performance.now() / each);
    const shift = (performance.now() / each - newest) * (BAR_PX + GAP_PX);
    const bars = new Float32Array(count + 1);
    for (const { time, peak } of this.peaks[side]) {
      const index = newest - Math.floor(time / each);
      if (index <= count) bars[index] = Math.max(bars[index], height(peak));
    }
    bars.forEach((bar, index) => {
      const size = bar * (tall - 4);
      if (size < 1) return;
      const left = width - shift - index * (BAR_PX + GAP_PX);
      context.fillRect(left, (tall - size) / 2, BAR_PX, size);
    });
  }

  /** One bar for the level now: nothing moves across the page. */
  drawLevel(context, side, width, tall) {
    const now = this.peaks[side].filter(({ time }) => time > performance.now() - STILL_MS);
    const level = Math.max(0, ...now.map(({ peak }) => height(peak)));
    context.fillRect(0, side === "user" ? tall / 2 - 8 : tall / 2 + 4, level * width, 4);
  }
}
