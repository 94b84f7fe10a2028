// Maps as arrays: decoding, resizing, coloring, parts above a threshold. Nothing here knows the page.

const POSITIVE = [202, 0, 32], NEGATIVE = [5, 103, 190], CLIPPED = 0.99, STRONGEST = 0.75;
let colors = new Uint8Array(768);

/** Set the colormap: 256 RGB colors as base64. */
export function setColors(text) { colors = bytes(text); }

function bytes(text) { return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)); }

/** Return a map {values, height, width} of base64 float32. */
export function decode(text, [height, width]) { return { values: new Float32Array(bytes(text).buffer), height, width }; }

/** Return for each of count pixels the two of `from` values that it lies between, and how far it is from the first. */
function between(count, from) {
  const low = new Int32Array(count), high = new Int32Array(count), far = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    const at = Math.min(from - 1, Math.max(0, (i + 0.5) * from / count - 0.5));
    low[i] = Math.floor(at);
    high[i] = Math.min(from - 1, low[i] + 1);
    far[i] = at - low[i];
  }
  return { low, high, far };
}

/** Return a map resized to height x width, bilinear with half-pixel centers, as the package does. */
export function resized(map, height, width) {
  const out = new Float32Array(height * width), row = new Float32Array(map.width), { values } = map;
  const down = between(height, map.height), across = between(width, map.width);
  for (let y = 0, p = 0; y < height; y++) {
    const above = down.low[y] * map.width, below = down.high[y] * map.width;
    for (let x = 0; x < map.width; x++) row[x] = values[above + x] + (values[below + x] - values[above + x]) * down.far[y];
    for (let x = 0; x < width; x++, p++) out[p] = row[across.low[x]] + (row[across.high[x]] - row[across.low[x]]) * across.far[x];
  }
  return out;
}

/** Return how a map is drawn at a size: values in [0, 1], or [-1, 1] if signed, and what their ends stand for. */
export function scaled(map, height, width) {
  const values = resized(map, height, width), fine = map.height * 2 >= height;
  let low = Infinity, high = -Infinity;
  for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
  const signed = map.values.some((value) => value < 0);
  const cut = (list) => list.sort()[Math.floor(CLIPPED * (list.length - 1))];
  if (signed) {
    const most = Math.max(high, -low), limit = (fine && cut(values.map(Math.abs))) || most || 1;
    return { values: values.map((value) => Math.max(-1, Math.min(1, value / limit))), low: -limit, high: limit, signed };
  }
  if (map.limits) [low, high] = map.limits;
  const end = fine && !map.limits ? cut(values.slice()) : high, top = end > low ? end : high, range = Math.max(top - low, 1e-30);
  return { values: values.map((value) => Math.max(0, Math.min(1, (value - low) / range))), low, high: top, signed };
}

/** Blend scaled values into pixels (RGBA) of the same size, by one opacity, or where that is null by the values. */
export function blend(pixels, shown, opacity) {
  const { values, signed } = shown;
  for (let i = 0, p = 0; i < values.length; i++, p += 4) {
    const color = !signed ? colors : values[i] > 0 ? POSITIVE : NEGATIVE, at = signed ? 0 : Math.round(values[i] * 255) * 3;
    const strength = Math.abs(values[i]), share = opacity ?? STRONGEST * strength;
    const white = signed && opacity !== null ? 255 * (1 - strength) : 0, own = 1 - white / 255; // white at 0
    for (let c = 0; c < 3; c++) pixels[p + c] += (white + color[at + c] * own - pixels[p + c]) * share;
  }
}

/** Darken pixels (RGBA) where a map is low: left as they are where it is at least `top`, nearly black where it is 0. */
export function spotlight(pixels, map, top, height, width) {
  const values = resized(map, height, width);
  for (let i = 0, p = 0; i < values.length; i++, p += 4) {
    const light = 0.18 + 0.82 * Math.max(0, Math.min(1, values[i] / (top || 1)));
    pixels[p] *= light;
    pixels[p + 1] *= light;
    pixels[p + 2] *= light;
  }
}

/** Return the CSS of a color bar. */
export function bar(signed) {
  if (signed) return `linear-gradient(to right, rgb(${NEGATIVE}), #fff, rgb(${POSITIVE}))`;
  const stops = Array.from({ length: 9 }, (_, i) => colors.slice(Math.round(i / 8 * 255) * 3).slice(0, 3));
  return `linear-gradient(to right, ${stops.map((color) => `rgb(${color.join()})`).join()})`;
}

/** Return where a map is at least a share of its range, at a size; of a signed map only what is positive counts. */
export function above(map, share, height, width) {
  const positive = { ...map, values: map.values.map((value) => Math.max(0, value)) };
  const values = resized(map.values.some((value) => value < 0) ? positive : map, height, width);
  let low = Infinity, high = -Infinity;
  for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
  const mask = new Uint8Array(values.length);
  for (let i = 0; i < mask.length; i++) mask[i] = high > low && (values[i] - low) / (high - low) >= share;
  return mask;
}

/** Return the box [left, top, right, bottom] of the largest connected part of a mask, or null. */
export function largestBox(mask, height, width) {
  const seen = new Uint8Array(mask.length), stack = [];
  let best = null, most = 0;
  for (let start = 0; start < mask.length; start++) {
    if (!mask[start] || seen[start]) continue;
    let count = 0, box = [width, height, 0, 0];
    stack.push(start); seen[start] = 1;
    while (stack.length) {
      const at = stack.pop(), x = at % width, y = (at - x) / width;
      count++;
      box = [Math.min(box[0], x), Math.min(box[1], y), Math.max(box[2], x + 1), Math.max(box[3], y + 1)];
      for (let v = Math.max(0, y - 1); v <= Math.min(height - 1, y + 1); v++) {
        for (let u = Math.max(0, x - 1); u <= Math.min(width - 1, x + 1); u++) {
          const next = v * width + u;
          if (mask[next] && !seen[next]) { seen[next] = 1; stack.push(next); }
        }
      }
    }
    if (count > most) { most = count; best = box; }
  }
  return best;
}

/** Draw the outline of a mask: white, with a dark line beside it so that it shows on any image. */
export function outline(context, mask, height, width) {
  const draw = (thickness, style) => {
    context.beginPath();
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const inside = mask[y * width + x];
        if (x + 1 < width && inside !== mask[y * width + x + 1]) { context.moveTo(x + 1, y); context.lineTo(x + 1, y + 1); }
        if (y + 1 < height && inside !== mask[(y + 1) * width + x]) { context.moveTo(x, y + 1); context.lineTo(x + 1, y + 1); }
      }
    }
    context.lineWidth = thickness; context.strokeStyle = style; context.lineCap = "square"; context.stroke();
  };
  draw(4, "rgb(0 0 0 / 0.65)");
  draw(2, "#fff");
}
