// Marks on the pixels of the network's input: 0 not marked, 1 look here, 2 not here. With undo and redo.

export const LOOK = 1, AVOID = 2;
const STEPS = 100;

export class Marks {
  constructor(height, width, values = new Uint8Array(height * width)) {
    Object.assign(this, { height, width, values, past: [], future: [], touched: false });
  }

  get empty() { return this.values.every((value) => !value); }

  /** Remember the state before a change. */
  begin() {
    this.past.push(this.values.slice());
    if (this.past.length > STEPS) this.past.shift();
    this.future = [];
    this.touched = true;
  }

  /** Paint a line of a round brush from one place to another, in pixels. */
  stroke(from, to, radius, value) {
    const steps = Math.max(1, Math.ceil(Math.hypot(to.x - from.x, to.y - from.y) / Math.max(0.5, radius / 3)));
    for (let i = 0; i <= steps; i++) {
      this.#disc(from.x + (to.x - from.x) * i / steps, from.y + (to.y - from.y) * i / steps, radius, value);
    }
  }

  #disc(x, y, radius, value) {
    for (let v = Math.max(0, Math.floor(y - radius)); v <= Math.min(this.height - 1, Math.ceil(y + radius)); v++) {
      for (let u = Math.max(0, Math.floor(x - radius)); u <= Math.min(this.width - 1, Math.ceil(x + radius)); u++) {
        if ((u + 0.5 - x) ** 2 + (v + 0.5 - y) ** 2 <= radius ** 2) this.values[v * this.width + u] = value;
      }
    }
  }

  /** Change every pixel by a function of its mark, as one step. */
  change(to) { this.begin(); this.values = this.values.map(to); }

  undo() { this.#step(this.past, this.future); }
  redo() { this.#step(this.future, this.past); }

  #step(from, to) {
    if (!from.length) return;
    to.push(this.values);
    this.values = from.pop();
    this.touched = true;
  }

  /** Return the marks as short text, runs of equal values, and read them again. */
  toText() {
    const runs = [];
    let count = 0;
    this.values.forEach((value, i) => {
      count++;
      if (value !== this.values[i + 1]) { runs.push(`${value}:${count}`); count = 0; }
    });
    return runs.join();
  }

  static fromText(text, height, width) {
    const marks = new Marks(height, width);
    let at = 0;
    for (const [value, count] of text.split(",").map((run) => run.split(":").map(Number))) {
      marks.values.fill(value, at, at + count);
      at += count;
    }
    return at === height * width ? marks : null;
  }

  /** Draw the marks as colors into pixels (RGBA) of scale times the size, with smooth edges. */
  draw(pixels, scale) {
    const { height, width, values } = this, wide = width * scale, lefts = places(width, scale), tops = places(height, scale);
    for (const [kind, red, green, blue] of [[LOOK, 20, 205, 105], [AVOID, 236, 62, 40]]) {
      if (!values.includes(kind)) continue;
      for (let y = 0, p = 0; y < height * scale; y++) {
        const above = tops[y] * width, below = Math.min(height - 1, tops[y] + 1) * width;
        for (let x = 0; x < wide; x++, p += 4) {
          const left = lefts[x], right = Math.min(width - 1, left + 1);
          const corners = (values[above + left] === kind) + (values[above + right] === kind) + (values[below + left] === kind) + (values[below + right] === kind);
          if (!corners) continue;
          const striped = kind === AVOID && (x + y) % 14 < 4; // to be told apart without seeing colors
          const share = corners < 4 ? Math.min(1, 0.95 * corners / 4 + 0.2) : striped ? 0.68 : 0.34;
          pixels[p] += (red - pixels[p]) * share;
          pixels[p + 1] += (green - pixels[p + 1]) * share;
          pixels[p + 2] += (blue - pixels[p + 2]) * share;
        }
      }
    }
  }
}

/** Return for each of scale times as many pixels the mark whose center lies before its own. */
function places(count, scale) {
  return Int32Array.from({ length: count * scale }, (_, i) => Math.max(0, Math.min(count - 1, Math.floor((i + 0.5) / scale - 0.5))));
}
