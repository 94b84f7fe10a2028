// The page: what is chosen, what the server answers, and how it is shown.

import { above, bar, blend, decode, largestBox, outline, scaled, setColors, spotlight } from "./maps.js";
import { AVOID, LOOK, Marks } from "./paint.js";

const $ = (id) => document.getElementById(id);
const UNDECIDED = 0.01; // polarity up to which a map is neither upright nor inverted
const percent = (value) => value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`;
const shown = (value) => Math.abs(value) >= 1000 || (value && Math.abs(value) < 0.001) ? value.toExponential(1) : value.toPrecision(3);

/** What is chosen, and the answers to it. `name`s are those of the server. */
const state = {
  start: null, models: {}, model: null, image: null, name: "", target: null, versus: null, also: [],
  methods: {}, tab: "look", result: null, view: null, layers: null, layer: 0, edited: null, saved: [], brush: { x: 0, y: 0 },
  get marks() { return this.layers?.[this.layer] ?? null; }, // those of the map that is painted
};
/** The maps that are painted apart, in the order of the server: its name in records and in answers, and for people. */
const PAINTED = [
  { on: "attention-map", key: "attention_map", name: "M", says: "M weights the features of the prediction. It is one map for all classes. Marks on it are for training with --on attention-map." },
  { on: "class-map", key: "class_map", name: "the class map", says: "The class map gives the answer of the attention branch, not the prediction. Marks on it are for training with --on class-map." },
];

// ---- the server -------------------------------------------------------------------------------------------------

class ServerError extends Error {}

/** Return the address of something on the server, with the values that are there. */
function addressOf(path, values) {
  const given = Object.entries(values).filter(([, value]) => value !== null && value !== undefined);
  return `/api/${path}?${new URLSearchParams(given.map(([key, value]) => [key, String(value)]))}`;
}

let blobs = new Map(); // images that were sent, to send them again to a server that has lost them

/** Ask the server; an error is a sentence. Waits for a server that does not answer, and sends lost images again. */
async function ask(path, values = {}, body = undefined, kind = "json") {
  const address = addressOf(path, values);
  for (;;) {
    let response;
    try {
      response = await fetch(address, body === undefined ? {} : { method: "POST", body });
    } catch {
      tell("The server does not answer. Nothing is lost: start it again with 'xai-abn app' to continue.");
      do { await new Promise((done) => setTimeout(done, 1500)); } while (!await reachable());
      tell("");
      continue;
    }
    if (response.ok) return kind === "json" ? response.json() : kind === "blob" ? response.blob() : response.arrayBuffer();
    const problem = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
    if (problem.unknown_image && blobs.has(values.image)) {
      const [blob, name] = blobs.get(values.image);
      await ask("images", { name }, blob);
      continue;
    }
    if (problem.unknown_image) problem.error = "the server no longer has this image; choose it again";
    throw new ServerError(sentence(problem.error));
  }
}

const reachable = () => fetch("/api/start").then((response) => response.ok, () => false);
/** Return a message of the package as a sentence; one that starts with the name of a file stays as it is. */
const sentence = (text) => (/^[a-z]+ /.test(text) ? text[0].toUpperCase() + text.slice(1) : text) + (/[.?!]$/.test(text) ? "" : ".");

/** Show a message, or none. */
function tell(text) {
  $("message").hidden = !text;
  $("message").firstElementChild.textContent = text;
}

/** Run something that the user asked for; its error becomes a message. */
async function attempt(work) {
  try { return await work(); } catch (error) {
    tell(error instanceof ServerError ? error.message : `The page failed: ${error.message}. Reload it; saved corrections are on the disk.`);
    if (!(error instanceof ServerError)) console.error(error);
    return undefined;
  }
}

/** Return a function that runs the newest of many calls, one at a time. */
function newest(work) {
  let running = false, waiting = null;
  return async (...given) => {
    waiting = given;
    if (running) return;
    running = true;
    while (waiting) { const next = waiting; waiting = null; await attempt(() => work(...next)); }
    running = false;
  };
}

// ---- the image --------------------------------------------------------------------------------------------------

async function send(file) {
  if (!file) return;
  tell("");
  if (file.size > state.start.max_upload) {
    tell(`${file.name} is larger than ${state.start.max_upload / 2 ** 20} MB. Give a smaller image.`);
    return;
  }
  await attempt(async () => {
    const name = file.name || "pasted.png", sent = await ask("images", { name }, file);
    blobs.set(sent.image, [file, name]);
    await choose(sent.image, sent.name);
  });
}

/** Show an image; the class stays only if asked. */
async function choose(image, name, { target = null, tab = state.tab } = {}) {
  Object.assign(state, { image, name, target, versus: null, also: [], result: null, layers: null, edited: null });
  openTab(tab, false);
  await refresh();
}

async function drawView() {
  const blob = await ask("view", { model: state.model, image: state.image }, undefined, "blob");
  state.view = await createImageBitmap(blob);
  if ($("thumb").src) URL.revokeObjectURL($("thumb").src);
  $("thumb").src = URL.createObjectURL(blob);
  $("thumb").alt = `What the network sees of ${state.name}`;
  $("thumb").hidden = false;
  $("drop").classList.add("filled");
}

// ---- the choice of classes --------------------------------------------------------------------------------------

const model = () => state.models[state.model];
const label = (index) => model().labels[index];

/** Make an input a search among the classes; `pick` gets an index, or null for none. */
function combo(input, list, pick) {
  let found = [], at = 0;
  const close = () => { list.hidden = true; input.setAttribute("aria-expanded", "false"); input.removeAttribute("aria-activedescendant"); };
  const open = () => {
    const text = input.value.trim().toLowerCase(), labels = model().labels;
    const ranked = labels.map((name, index) => [name.toLowerCase().indexOf(text), name, index]).filter(([place]) => place >= 0);
    found = text ? ranked.sort((a, b) => a[0] - b[0] || a[1].length - b[1].length).slice(0, 50) : ranked.slice(0, 50);
    at = 0;
    const rows = found.map(([, name, index], i) => element("li", { id: `${list.id}-${i}`, role: "option", text: name, "aria-selected": i === at, onmousedown: (event) => { event.preventDefault(); take(index); } }));
    list.replaceChildren(...(rows.length ? rows : [element("li", { className: "none", text: `no class is called '${input.value.trim()}'` })]));
    list.classList.toggle("up", input.getBoundingClientRect().bottom + 280 > innerHeight);
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
    move(0);
  };
  const move = (step) => {
    list.children[at]?.setAttribute("aria-selected", "false");
    at = Math.max(0, Math.min(found.length - 1, at + step));
    const row = list.children[at];
    if (!found.length) return;
    row.setAttribute("aria-selected", "true");
    row.scrollIntoView({ block: "nearest" });
    input.setAttribute("aria-activedescendant", row.id);
  };
  const take = (index) => { close(); input.value = index === null ? "" : label(index); input.select(); pick(index); };
  input.addEventListener("input", open);
  input.addEventListener("focus", () => setTimeout(() => input.select())); // after the click that gave the focus
  input.addEventListener("blur", () => { close(); showTarget(input); });
  input.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (list.hidden) open(); else move(event.key === "ArrowDown" ? 1 : -1);
    } else if (event.key === "Enter") {
      if (!input.value.trim()) take(null);
      else if (!list.hidden && found.length) take(found[at][2]);
      else tell(`No class of ${state.model} is called '${input.value.trim()}'. Type a part of its name and choose from the list.`);
    } else if (event.key === "Escape") { close(); showTarget(input); }
  });
}

/** Show the classes; an input that has the focus may be in use, and is only changed if it is the one given. */
function showTarget(own = null) {
  if (!state.model) return;
  for (const [id, index] of [["class", state.target], ["versus", state.versus]]) {
    if ($(id) !== document.activeElement || $(id) === own) $(id).value = index === null ? "" : label(index);
  }
  $("also-chosen").replaceChildren(...state.also.map((index) => element("span", { className: "chip" }, element("span", { text: label(index) }),
    element("button", { text: "✕", "aria-label": `Remove ${label(index)}`, onclick: () => { state.also = state.also.filter((other) => other !== index); showTarget(); refresh(); } }))));
  $("class").placeholder = state.result ? `${state.result.label} (predicted)` : "the predicted one";
  for (const place of document.querySelectorAll(".class-name")) place.textContent = state.result?.label ?? "";
  for (const place of document.querySelectorAll(".model-name")) place.textContent = state.model;
}

async function aim(target) {
  if (state.tab === "correct" && !await leaveMarks()) return;
  state.target = target;
  await refresh();
}

// ---- looking ----------------------------------------------------------------------------------------------------

/** Return what asks for the maps that are shown. */
const question = (more = {}) => ({
  model: state.model, image: state.image, methods: state.methods[state.model].join("|"), target: state.also.length ? state.target ?? state.result?.target : state.target, versus: state.versus, also: state.also.join() || null, ...more,
});

/** Ask for everything about the image again, and show it. */
const refresh = newest(async () => {
  if (!state.image) return;
  keepInAddress();
  $("image-name").textContent = short(state.name);
  $("image-name").title = state.name;
  for (const button of $("examples").children) button.setAttribute("aria-pressed", button.dataset.image === state.image);
  $("cards").classList.add("busy");
  try {
    const asked = question(), [result] = await Promise.all([ask("explain", asked), drawView()]);
    if (asked.image !== state.image || asked.model !== state.model) return;
    tell("");
    state.result = result;
    showAnswers();
    showTarget();
    showCards();
    if (state.tab === "correct") await startCorrecting();
    if (state.tab === "compare") await compare();
    if (state.tab === "queue") showQueue();
    ask("polarity", asked).then((values) => { if (state.result === result) showPolarity(values); }, () => undefined);
  } finally {
    $("cards").classList.remove("busy");
  }
});

function showAnswers() {
  const { result } = state;
  $("notes").replaceChildren(...result.image.notes.map((text) => element("li", { text: sentence(text) })));
  $("top").replaceChildren(...result.top.map((row) => answerRow(row)));
  if (!result.top.length) $("top").replaceChildren(element("li", { text: `${result.label}: no probabilities` }));
  $("branch").hidden = !result.attention;
  $("attention").replaceChildren(...(result.attention ?? []).map((row) => answerRow(row)));
}

function answerRow({ label: name, probability }) {
  const index = model().labels.indexOf(name);
  const fill = element("i"), row = element("li", {}, element("button", { title: `Explain ${name}`, "aria-pressed": index === state.result.target, onclick: () => aim(index) },
    element("span", { className: "name", text: name }), element("span", { className: "number", text: percent(probability) }), element("span", { className: "track" }, fill)));
  fill.style.width = `${100 * (probability ?? 0)}%`;
  return row;
}

function showCards() {
  const cards = state.result.maps.map((record, number) => makeCard(record, state.result, { asked: question({ map: number }) }));
  $("cards").replaceChildren(...cards);
  drawCards();
  $("python").textContent = state.result.python;
  $("command").textContent = state.result.command ?? "";
  $("command").parentElement.hidden = !state.result.command;
  $("edit-python").textContent = state.result.edit_python ?? "";
  $("edit-python").closest("details").hidden = !state.result.edit_python;
}

/** Return the card of one map; its map and image are kept on its canvas for drawing. */
function makeCard(record, result, { asked, title = state.also.length && record.class_specific ? `${record.method}: ${record.label}` : record.method, view = state.view }) {
  const card = $("card").content.firstElementChild.cloneNode(true), canvas = card.querySelector("canvas");
  card.dataset.method = record.method;
  card.querySelector("h3").textContent = title;
  card.querySelector(".says").textContent = record.says;
  card.querySelector(".notes").append(...record.notes.filter((note) => !result.image.notes.includes(note)).map((text) => element("li", { text: sentence(text) })));
  Object.assign(canvas, { width: view.width, height: view.height, view, map: { ...decode(record.values, record.map_shape), limits: record.limits }, record });
  canvas.setAttribute("aria-label", `${record.method} of ${result.image.name} for ${record.label}, from ${shown(record.map_min ?? NaN)} to ${shown(record.map_max ?? NaN)}. Arrow keys read its values.`);
  const flaw = card.querySelector(".flaw");
  flaw.hidden = !record.flaw;
  flaw.textContent = record.flaw ? `The map is ${record.flaw}: there is nothing to show.` : "";
  for (const link of card.querySelectorAll("[data-kind]")) {
    link.asked = { ...asked, kind: link.dataset.kind };
  }
  canvas.addEventListener("pointermove", (event) => point(canvas, event.offsetX / canvas.clientWidth, event.offsetY / canvas.clientHeight));
  canvas.addEventListener("pointerleave", () => point(canvas, null));
  canvas.addEventListener("blur", () => point(canvas, null));
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const { width, height } = canvas.map, at = canvas.at ?? [Math.floor(width / 2), Math.floor(height / 2)];
    const next = [at[0] + step[0], at[1] + step[1]].map((v, i) => Math.max(0, Math.min([width, height][i] - 1, v)));
    canvas.at = next;
    point(canvas, (next[0] + 0.5) / width, (next[1] + 0.5) / height);
  });
  return card;
}

/** Show the values of all maps beside this one at a place of the image, in shares of its sides. */
function point(canvas, x, y) {
  for (const card of canvas.closest(".cards").children) {
    const other = card.querySelector("canvas"), cross = card.querySelector(".cross"), readout = card.querySelector(".readout");
    if (!other || other.record.flaw) continue;
    cross.hidden = x === null;
    readout.textContent = "Point at a map to read its values.";
    if (x === null) continue;
    cross.style.left = `${100 * x}%`;
    cross.style.top = `${100 * y}%`;
    const { width, height, values } = other.map;
    const column = Math.max(0, Math.min(width - 1, Math.floor(x * width))), row = Math.max(0, Math.min(height - 1, Math.floor(y * height)));
    readout.textContent = `${shown(values[row * width + column])} at row ${row}, column ${column} of ${height}×${width}`;
  }
}

function drawCards(container = $("cards")) {
  const opacity = $("even").checked ? Number($("opacity").value) : null;
  for (const card of container.children) {
    const canvas = card.querySelector("canvas");
    if (canvas) drawMap(canvas, card, opacity);
    for (const link of card.querySelectorAll("[data-kind]")) link.href = addressOf("file", { ...link.asked, opacity });
  }
}

function drawMap(canvas, card, opacity) {
  const context = canvas.getContext("2d", { willReadFrequently: true }), { width, height, map, record } = canvas;
  context.drawImage(canvas.view, 0, 0);
  const ramp = card.querySelector(".scale");
  ramp.hidden = Boolean(record.flaw);
  if (record.flaw) return;
  const drawn = canvas.drawn ??= scaled(map, height, width), pixels = context.getImageData(0, 0, width, height);
  blend(pixels.data, drawn, opacity);
  context.putImageData(pixels, 0, 0);
  ramp.querySelector(".low").textContent = `${drawn.signed ? "negative" : "low"} (${shown(drawn.low)})`;
  ramp.querySelector(".high").textContent = `${drawn.signed ? "positive" : "high"} (${shown(drawn.high)})`;
  ramp.querySelector("i").style.background = bar(drawn.signed);
  if (!$("outline").checked && !$("box").checked) return;
  const mask = above(map, Number($("threshold").value), height, width);
  if ($("outline").checked) outline(context, mask, height, width);
  const box = $("box").checked && largestBox(mask, height, width);
  if (!box) return;
  const [left, top, right, bottom] = box;
  for (const [thickness, style] of [[6, "rgb(0 0 0 / 0.65)"], [3, "#ffd84d"]]) {
    context.lineWidth = thickness;
    context.strokeStyle = style;
    context.strokeRect(left + 1.5, top + 1.5, right - left - 3, bottom - top - 3);
  }
}

function showPolarity(values) {
  [...$("cards").children].forEach((card, number) => {
    const value = values[number], place = card.querySelector(".polarity");
    if (value === null) return;
    const verdict = Math.abs(value) <= UNDECIDED ? "undecided" : value > 0 ? "upright" : "inverted";
    place.textContent = `${verdict} ${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(value).toFixed(2)}`;
    place.className = `polarity ${verdict}`;
    place.title = "Polarity on this image: the probability lost without the brightest fifth of the map, minus that lost without the darkest.";
  });
}

function showMethods() {
  const chosen = state.methods[state.model], { methods } = model();
  const chips = chosen.map((name) => element("span", { className: "chip" }, element("span", { text: name }),
    element("button", { text: "✕", "aria-label": `Remove ${name}`, title: `Remove ${name}`, disabled: chosen.length === 1, onclick: () => setMethods(chosen.filter((other) => other !== name)) })));
  const select = element("select", { id: "add-method", "aria-label": "Add a method", onchange: () => setMethods([...chosen, select.value]) }, element("option", { text: "Add a method …", value: "" }));
  const group = (text, rows) => rows.length && select.append(element("optgroup", { label: text }, ...rows.map(({ name }) => element("option", { value: name, text: name }))));
  const left = methods.filter(({ name }) => !chosen.includes(name));
  group("from the same pass", left.filter(({ quick, baseline }) => quick && !baseline));
  group("slower, many passes", left.filter(({ quick }) => !quick));
  group("baselines", left.filter(({ quick, baseline }) => quick && baseline));
  select.disabled = chosen.length >= 8;
  $("methods").replaceChildren(...chips, select);
}

function setMethods(names) {
  state.methods[state.model] = names;
  showMethods();
  refresh();
}

// ---- correcting -------------------------------------------------------------------------------------------------

const draftKey = () => `xai-abn marks ${state.model} ${state.image} ${state.result.target}`;
const SCALE = () => Math.max(1, Math.round(448 / Math.max(state.marks.height, state.marks.width)));

/** Begin with the marks that are not saved yet, else the saved ones, else none. */
async function startCorrecting() {
  const { image, result } = state, [height, width] = result.image.input;
  const place = { model: state.model, image, target: result.target };
  if (state.layers?.of === draftKey()) { await react(); return; }
  const [content, saved] = await Promise.all([ask("marks", place, undefined, "bytes"), ask("corrections", place)]);
  if (image !== state.image) return;
  const draft = recall(draftKey())?.split(" "), size = height * width, count = model().editable ? PAINTED.length : 1;
  state.saved = saved;
  state.layers = Array.from({ length: count }, (_, i) => {
    const drafted = draft?.length === count ? Marks.fromText(draft[i], height, width) : null;
    return Object.assign(drafted ?? new Marks(height, width, new Uint8Array(content.slice(i * size, (i + 1) * size))), { touched: Boolean(drafted) });
  });
  state.layers.of = draftKey();
  state.layer = Math.min(state.layer, count - 1);
  state.brush = { x: width / 2, y: height / 2 };
  const canvas = $("canvas");
  Object.assign(canvas, { width: width * SCALE(), height: height * SCALE() });
  $("not-editable").hidden = model().editable;
  $("not-editable").textContent = model().editable ? "" : `${state.model} has no attention map that it uses, so its answers cannot follow. Marks can be saved all the same, to train with.`;
  for (const place of document.querySelectorAll(".editable")) place.hidden = !model().editable;
  showSaved();
  showLayer();
  await react();
}

/** Return what is painted, the marks on each map one after the other. */
const painted = () => { const all = new Uint8Array(state.layers.length * state.marks.values.length); state.layers.forEach(({ values }, i) => all.set(values, i * values.length)); return all; };
const unsaved = () => state.layers.some(({ touched }) => touched);

/** Paint on another map. */
function setLayer(number) {
  if (!state.layers || number >= state.layers.length) return;
  state.layer = number;
  showLayer();
  drawEditor();
}

function showLayer() {
  document.querySelectorAll("[data-layer]").forEach((button, i) => {
    const on = i === state.layer, marked = Boolean(state.layers?.[i] && !state.layers[i].empty);
    button.setAttribute("aria-checked", on);
    button.tabIndex = on ? 0 : -1;
    button.querySelector(".marked").hidden = !marked;
  });
  $("layer-says").textContent = PAINTED[state.layer].says;
  $("canvas").dataset.painted = PAINTED[state.layer].on;
}

/** Ask for the answers to the marks as they are now, and show them. */
const react = newest(async () => {
  if (!state.marks) return;
  const { layers, image } = state;
  drawEditor();
  if (!model().editable) return;
  const began = performance.now();
  const edited = await ask("edit", { model: state.model, image, target: state.result.target }, painted());
  if (image !== state.image || layers !== state.layers) return;
  state.edited = edited;
  showChanges("edited-prediction", edited.prediction);
  showChanges("edited-attention", edited.attention);
  drawEditor();
  performance.measure("answers", { start: began, end: performance.now() });
  document.body.dataset.answers = Number(document.body.dataset.answers ?? 0) + 1;
});

function showChanges(id, rows) {
  $(id).replaceChildren(...rows.map(({ target, label: name, before, after }) => {
    const change = after - before, much = Math.abs(change) >= 0.0005;
    const text = [element("span", { text: percent(after) })];
    if (much) text.push(element("span", { className: change > 0 ? "up" : "down", text: ` ${change > 0 ? "▲" : "▼"} ${(100 * Math.abs(change)).toFixed(1)}` }));
    const kept = element("i"), moved = element("i", { className: change > 0 ? "gain" : "loss" });
    kept.style.width = `${100 * Math.min(before, after)}%`;
    moved.style.left = kept.style.width;
    moved.style.width = `${100 * Math.abs(change)}%`;
    return element("li", { className: target === state.result.target ? "is-target" : "" }, element("div", { className: "row" },
      element("span", { className: "name", text: name, title: name }), element("span", { className: "number" }, ...text), element("span", { className: "track" }, kept, moved)));
  }));
  const target = rows.find((row) => row.target === state.result.target), place = id === "edited-prediction" ? "summary-prediction" : "summary-attention";
  $(place).textContent = target ? percent(target.after) + (Math.abs(target.after - target.before) >= 0.0005 ? ` (before ${percent(target.before)})` : "") : "";
  if (id !== ["edited-prediction", "edited-attention"][state.layer]) return;
  clearTimeout(showChanges.later); // what is read aloud waits for the end of a stroke
  showChanges.later = setTimeout(() => {
    const row = rows.find(({ target }) => target === state.result.target);
    $("changed-text").textContent = row ? `${["Prediction", "Attention branch"][state.layer]}, ${row.label}: ${percent(row.after)}, before ${percent(row.before)}` : "";
  }, 600);
}

/** Draw the editor before the next frame. */
function drawEditor() {
  drawEditor.frame ??= requestAnimationFrame(() => { drawEditor.frame = null; drawEditorNow(); });
}

function drawEditorNow() {
  const { marks, view } = state, canvas = $("canvas");
  if (!marks || !view) return;
  const context = canvas.getContext("2d", { willReadFrequently: true }), { width, height } = canvas;
  context.imageSmoothingQuality = "high";
  context.drawImage(view, 0, 0, width, height);
  const map = currentMap(), pixels = context.getImageData(0, 0, width, height);
  if (map) spotlight(pixels.data, map, map.top, height, width);
  marks.draw(pixels.data, SCALE());
  context.putImageData(pixels, 0, 0);
  showBrush();
  for (const [id, off] of [["undo", !marks.past.length], ["redo", !marks.future.length], ["reset", marks.empty], ["keep", marks.empty], ["ignore", marks.empty]]) $(id).disabled = off;
  $("save").disabled = !unsaved();
}

/** Return the map that is painted: as changed by the marks, or the network's own. */
function currentMap() {
  const how = $("shown").value, { edited } = state, { key } = PAINTED[state.layer];
  if (how === "none" || !edited) return null;
  const own = decode(edited[`own_${key}`], edited.grid), top = key === "attention_map" ? 1 : Math.max(...own.values);
  return { ...(how === "changed" ? decode(edited[key], edited.grid) : own), top };
}

const tool = () => Number(document.querySelector("[data-tool][aria-checked=true]").dataset.tool);
const radius = () => Number($("size").value) / 200 * Math.max(state.marks.width, state.marks.height) / 2;

function showBrush(visible = document.activeElement === $("canvas") || $("canvas").matches(":hover")) {
  const brush = $("brush"), { marks } = state, canvas = $("canvas");
  brush.hidden = !visible || !marks;
  if (brush.hidden) return;
  const side = canvas.clientWidth / marks.width;
  brush.style.left = `${state.brush.x * side}px`;
  brush.style.top = `${state.brush.y * side}px`;
  brush.style.width = brush.style.height = `${2 * radius() * side}px`;
  const map = currentMap();
  if (!map) { $("value").textContent = ""; return; }
  const column = Math.max(0, Math.min(map.width - 1, Math.floor(state.brush.x / marks.width * map.width))), row = Math.max(0, Math.min(map.height - 1, Math.floor(state.brush.y / marks.height * map.height)));
  $("value").textContent = `${shown(map.values[row * map.width + column])} here`;
}

function paintTo(place, begin) {
  const { marks } = state;
  if (begin) marks.begin();
  marks.stroke(begin ? place : state.brush, place, radius(), tool());
  state.brush = place;
  changedMarks();
}

function changedMarks() {
  remember(draftKey(), state.layers.map((layer) => layer.toText()).join(" "));
  showLayer();
  $("saved").className = "";
  $("saved").textContent = "Not saved yet.";
  react();
  drawEditor();
}

function placeOf(event) {
  const canvas = $("canvas"), area = canvas.getBoundingClientRect();
  return { x: (event.clientX - area.left) / area.width * state.marks.width, y: (event.clientY - area.top) / area.height * state.marks.height };
}

function bindEditor() {
  const canvas = $("canvas");
  let down = false, pen = false;
  canvas.addEventListener("pointerdown", (event) => {
    if (!state.marks || event.button) return;
    canvas.setPointerCapture(event.pointerId);
    canvas.focus({ preventScroll: true });
    down = true;
    paintTo(placeOf(event), true);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!state.marks) return;
    if (down) for (const step of event.getCoalescedEvents?.().length ? event.getCoalescedEvents() : [event]) paintTo(placeOf(step), false);
    else { state.brush = placeOf(event); showBrush(true); }
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { down = false; });
  for (const leave of ["pointerleave", "blur"]) canvas.addEventListener(leave, () => { pen = pen && leave !== "blur"; showBrush(); });
  canvas.addEventListener("focus", () => showBrush(true));
  canvas.addEventListener("keydown", (event) => {
    const { marks } = state, step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!marks || event.ctrlKey || event.metaKey) return;
    if (step) {
      const far = Math.max(1, radius() * (event.shiftKey ? 0.25 : 0.75)), clamp = (value, most) => Math.max(0, Math.min(most, value));
      const next = { x: clamp(state.brush.x + step[0] * far, marks.width), y: clamp(state.brush.y + step[1] * far, marks.height) };
      if (pen) paintTo(next, false); else { state.brush = next; showBrush(true); }
    } else if (event.key === " " || event.key === "Enter") {
      pen = !pen;
      if (pen) paintTo(state.brush, true);
    } else if (["1", "2", "3"].includes(event.key)) setTool(Number(event.key) % 3);
    else if (event.key.toLowerCase() === "m") setLayer((state.layer + 1) % state.layers.length);
    else if (event.key === "[" || event.key === "]") {
      $("size").value = Number($("size").value) + (event.key === "]" ? 6 : -6);
      $("size").dispatchEvent(new Event("input"));
    } else return;
    event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if (state.tab !== "correct" || !state.marks || !(event.ctrlKey || event.metaKey) || event.target.matches("input[type=text]")) return;
    const key = event.key.toLowerCase(), redo = key === "y" || (key === "z" && event.shiftKey);
    if (key !== "z" && !redo) return;
    event.preventDefault();
    if (redo) state.marks.redo(); else state.marks.undo();
    changedMarks();
  });
  for (const [name, set] of [["tool", setTool], ["layer", setLayer]]) {
    const all = [...document.querySelectorAll(`[data-${name}]`)];
    for (const button of all) {
      button.addEventListener("click", () => set(Number(button.dataset[name])));
      button.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        const next = all[(all.indexOf(button) + step + all.length) % all.length];
        set(Number(next.dataset[name]));
        next.focus();
      });
    }
  }
  const on = (id, change) => $(id).addEventListener("click", () => { if (state.marks) { change(state.marks); changedMarks(); } });
  on("undo", (marks) => marks.undo());
  on("redo", (marks) => marks.redo());
  on("reset", (marks) => marks.change(() => 0));
  on("keep", (marks) => marks.change((value) => value ? LOOK : AVOID));
  on("ignore", (marks) => marks.change((value) => value ? AVOID : 0));
  $("save").addEventListener("click", () => attempt(save));
  $("shown").addEventListener("input", drawEditor);
}

function setTool(value) {
  for (const button of document.querySelectorAll("[data-tool]")) {
    const on = Number(button.dataset.tool) === value;
    button.setAttribute("aria-checked", on);
    button.tabIndex = on ? 0 : -1;
  }
}

async function save() {
  const { layers } = state, key = draftKey(), sent = painted(), size = sent.length / layers.length;
  $("save").disabled = true;
  $("saved").className = "";
  $("saved").textContent = "Saving …";
  try {
    state.saved = await ask("corrections", { model: state.model, image: state.image, target: state.result.target }, sent);
  } catch (error) {
    $("saved").textContent = "Not saved yet.";
    drawEditor();
    throw error;
  }
  forget(key);
  layers.forEach((layer, number) => { layer.touched = layer.values.some((value, i) => value !== sent[number * size + i]); });
  tell("");
  showSaved();
  drawEditor();
}

function showSaved() {
  const own = state.saved.filter((row) => row.target === state.result.target), others = state.saved.filter((row) => row.target !== state.result.target);
  const place = ({ on }) => on ? ` on ${PAINTED.find((map) => map.on === on).name}` : "";
  $("saved").className = own.length && !unsaved() ? "done" : "";
  $("saved").textContent = unsaved() ? "Not saved yet." : own.length ? `Saved in ${state.start.corrections}: ${own.map((row) => `'${row.kind}'${place(row)}`).join(", ")}.` : "Nothing is saved for this class.";
  $("saved").title = own.map((row) => row.file).join("\n");
  const labels = [...new Set(others.map((row) => row.label))];
  $("list").replaceChildren(...labels.map((name) => {
    const { target } = others.find((row) => row.label === name);
    return element("li", { text: "Also corrected: " }, target === null ? element("span", { text: `${name} (of another model)` }) : element("button", { text: name, onclick: () => aim(target) }));
  }));
}

/** Unsaved marks are kept in the browser, so leaving them needs no question. */
async function leaveMarks() { state.layers = null; return true; }

// ---- comparing --------------------------------------------------------------------------------------------------

async function compare() {
  const others = state.start.models.filter((name) => name !== state.model);
  offer($("other"), others);
  const name = $("other").value;
  if (!name) { $("pair").replaceChildren(element("p", { text: "Start the app with --other MODEL to compare two models." })); return; }
  const second = await describe(name), both = model().methods.map((row) => row.name).filter((method) => second.methods.some((row) => row.name === method && row.quick));
  if ($("compare-method").dataset.of !== `${state.model} ${name}`) {
    $("compare-method").replaceChildren(...both.map((method) => element("option", { text: method, value: method })));
    $("compare-method").value = ["abn", "grad-cam"].find((method) => both.includes(method)) ?? both[0];
    $("compare-method").dataset.of = `${state.model} ${name}`;
  }
  const method = $("compare-method").value, { image, result } = state;
  const cards = await Promise.all([state.model, name].map(async (one) => {
    const wanted = state.target === null ? null : state.models[one].labels.findIndex((text) => text.toLowerCase() === result.label.toLowerCase());
    const target = wanted === -1 ? null : wanted;
    const asked = { model: one, image, methods: method, target };
    const [found, blob] = await Promise.all([ask("explain", asked), ask("view", { model: one, image }, undefined, "blob")]);
    const card = makeCard(found.maps[0], found, { asked: { ...asked, map: 0 }, title: one, view: await createImageBitmap(blob) });
    if (wanted === -1) card.querySelector(".notes").append(element("li", { text: `${one} has no class ${result.label}; this is its own prediction.` }));
    const list = element("ol", { className: "bars" });
    list.append(...found.top.map((row) => plainRow(row)));
    card.querySelector("header").after(list);
    return card;
  }));
  if (image !== state.image) return;
  $("pair").replaceChildren(...cards);
  drawCards($("pair"));
}

function plainRow({ label: name, probability }) {
  const fill = element("i");
  fill.style.width = `${100 * (probability ?? 0)}%`;
  return element("li", {}, element("div", { className: "row" }, element("span", { className: "name", text: name }), element("span", { className: "number", text: percent(probability) }), element("span", { className: "track" }, fill)));
}

// ---- the queue --------------------------------------------------------------------------------------------------

/** Show the queue, and again while images are still examined. */
const showQueue = newest(async (again = false) => {
  const select = $("queue-other"), list = $("queue-list");
  offer(select, state.start.models.filter((name) => name !== state.model), "no other model");
  $("queue-differ-label").hidden = !select.value;
  const [own, other] = await Promise.all([state.model, select.value].map((name) => name ? ask("queue", { model: name }) : null));
  const second = new Map((other?.rows ?? []).map((row) => [row.image, row]));
  const differ = (row) => second.has(row.image) && second.get(row.image).label !== row.label;
  const done = own.done + (other?.done ?? 0), total = own.total * (other ? 2 : 1), changed = own.rows.filter(differ).length;
  $("queue-state").textContent = [
    done < total ? `${done} of ${total} examined …` : `${own.total} images`,
    other ? `${changed} predicted differently` : "",
    ...own.failed.slice(0, 3).map((row) => row.error), own.failed.length > 3 ? `and ${own.failed.length - 3} more cannot be read` : "",
  ].filter(Boolean).join("; ");
  const rows = $("queue-differ").checked && other ? own.rows.filter(differ) : own.rows;
  const used = again && done < total && (list.matches(":hover") || list.contains(document.activeElement));
  if (!used) list.replaceChildren(...rows.map((row) => queueRow(row, second.get(row.image)))); // nothing moves under a hand
  if (done < total && state.tab === "queue") setTimeout(showQueue, 1000, true);
});

function queueRow(row, second) {
  const why = [...row.reasons];
  if (row.like) why.push(`its map is like that of ${short(row.like)}`);
  const text = element("span", {}, element("span", { className: "title", text: `${row.label}, ${percent(row.probability)}`, title: row.label }));
  if (second) text.append(element("span", { className: "why", text: `${$("queue-other").value}: ${second.label === row.label ? "the same" : second.label}, ${percent(second.probability)}` }));
  text.append(...why.map((reason) => element("span", { className: "why", text: reason })), element("span", { className: "why file", text: short(row.name), title: row.name }));
  return element("li", { className: row.like ? "alike" : "" }, element("button", { "aria-label": `Correct ${row.name}`, onclick: () => { tell(""); choose(row.image, row.name, { tab: "correct" }); scrollTo(0, 0); } },
    element("img", { src: `/api/thumbnail?${new URLSearchParams({ model: state.model, image: row.image })}`, alt: "", loading: "lazy" }), text));
}

// ---- the page ---------------------------------------------------------------------------------------------------

/** Offer names in a select, after one that means none; the choice stays if it can. */
function offer(select, names, none = null) {
  const kept = select.value, values = none === null ? names : ["", ...names];
  if ([...select.options].map((option) => option.value).join("|") === values.join("|")) return;
  select.replaceChildren(...values.map((value) => element("option", { value, text: value || none })));
  if (values.includes(kept)) select.value = kept;
}

const short = (name) => name.split("/").pop();

/** Return a new element; `text`, `className` and handlers are set as properties, others as attributes. */
function element(tag, values = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(values)) {
    if (name === "text") made.textContent = value;
    else if (name.startsWith("on") || name === "className" || name === "disabled" || name === "value") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const remember = (key, text) => { try { localStorage.setItem(key, text); } catch { /* a full or closed store: marks stay in the page */ } };
const recall = (key) => { try { return localStorage.getItem(key); } catch { return null; } };
const forget = (key) => { try { localStorage.removeItem(key); } catch { /* as above */ } };

function openTab(name, show = true) {
  state.tab = name;
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const on = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", on);
    tab.tabIndex = on ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !on;
  }
  document.body.classList.toggle("correcting", name === "correct");
  if (!show) return;
  keepInAddress();
  if (!state.result) return;
  if (name === "correct") attempt(startCorrecting);
  if (name === "compare") attempt(compare);
  if (name === "queue") showQueue();
}

/** Keep what is chosen in the address, so that a reload finds it again. */
function keepInAddress() {
  const { image, name, target, versus, tab } = state, values = { model: state.model, image, name, target, versus, tab };
  const given = Object.entries(values).filter(([, value]) => value !== null && value !== "");
  history.replaceState(null, "", `#${new URLSearchParams(given)}`);
}

async function describe(name) { return state.models[name] ??= await ask("model", { model: name }); }

async function setModel(name) {
  const known = await describe(name), before = state.target === null || !state.model ? null : label(state.target);
  state.model = name;
  state.methods[name] ??= known.chosen;
  const index = before === null ? -1 : known.labels.findIndex((text) => text.toLowerCase() === before.toLowerCase());
  Object.assign(state, { target: index < 0 ? null : index, versus: null, also: [], result: null, layers: null, edited: null });
  $("model").value = name;
  showMethods();
  showTarget();
}

function bind() {
  for (const id of ["file", "camera"]) $(id).addEventListener("change", (event) => { send(event.target.files[0]); event.target.value = ""; });
  const over = (on) => (event) => { event.preventDefault(); $("drop").classList.toggle("over", on); };
  document.addEventListener("dragover", over(true));
  document.addEventListener("dragleave", over(false));
  document.addEventListener("drop", (event) => { over(false)(event); send(event.dataTransfer.files[0]); });
  document.addEventListener("paste", (event) => send([...event.clipboardData.files].find((file) => file.type.startsWith("image/"))));
  $("message").querySelector("button").addEventListener("click", () => tell(""));
  $("model").addEventListener("change", () => attempt(async () => { tell(""); await setModel($("model").value); await refresh(); }));
  $("theme").addEventListener("click", () => {
    const root = document.documentElement, dark = getComputedStyle(root).colorScheme === "dark";
    root.dataset.theme = dark ? "light" : "dark";
    remember("xai-abn theme", root.dataset.theme);
  });
  const tabs = [...document.querySelectorAll("[role=tab]")];
  for (const tab of tabs) {
    tab.addEventListener("click", () => openTab(tab.id.slice(4)));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const open = tabs.filter((one) => !one.hidden), next = open[(open.indexOf(tab) + step + open.length) % open.length];
      next.focus();
      next.click();
    });
  }
  for (const id of ["opacity", "threshold", "size"]) {
    const show = () => { $(id).nextElementSibling.textContent = id === "size" ? $(id).value : `${Math.round(100 * $(id).value)} %`; };
    $(id).addEventListener("input", () => { show(); if (id === "size") showBrush(true); else { drawCards(); drawCards($("pair")); } });
    show();
  }
  for (const id of ["outline", "box"]) $(id).addEventListener("change", () => drawCards());
  $("even").addEventListener("change", () => {
    $("opacity").disabled = !$("even").checked;
    drawCards();
    drawCards($("pair"));
  });
  for (const id of ["queue-other", "queue-differ"]) $(id).addEventListener("change", () => showQueue());
  for (const id of ["other", "compare-method"]) $(id).addEventListener("change", () => attempt(compare));
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const text = $(button.dataset.copy).textContent;
      try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; } catch { getSelection().selectAllChildren($(button.dataset.copy)); button.textContent = "Selected"; }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }
  combo($("class"), $("class-list"), (index) => aim(index));
  combo($("versus"), $("versus-list"), (index) => { state.versus = index; refresh(); });
  combo($("also"), $("also-list"), (index) => {
    $("also").value = "";
    if (index === null || state.also.includes(index) || index === state.result?.target || state.also.length >= 5) return;
    state.also = [...state.also, index];
    showTarget();
    refresh();
  });
  bindEditor();
}

async function begin() {
  const theme = recall("xai-abn theme");
  if (theme) document.documentElement.dataset.theme = theme;
  bind();
  state.start = await ask("start");
  setColors(state.start.colors);
  $("model").replaceChildren(...state.start.models.map((name) => element("option", { text: name, value: name })));
  const kept = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  await setModel(state.start.models.includes(kept.model) ? kept.model : state.start.models[0]);
  $("tab-queue").hidden = !state.start.queue;
  const images = [...state.start.images.slice(0, 6), ...state.start.examples.map((image) => ({ image, name: image }))];
  $("examples").replaceChildren(...images.map(({ image, name }) => element("button", { "data-image": image, title: name, "aria-label": name, "aria-pressed": "false", onclick: () => { tell(""); choose(image, name); } },
    element("img", { src: `/api/thumbnail?${new URLSearchParams({ model: state.model, image })}`, alt: "", loading: "lazy", onerror: (event) => event.target.parentElement.remove() }))));
  const tab = ["look", "correct", "compare", ...(state.start.queue ? ["queue"] : [])].includes(kept.tab) ? kept.tab : "look";
  const first = kept.image ? { image: kept.image, name: kept.name } : images[0];
  const number = (text) => text === undefined || !(Number(text) < model().labels.length) ? null : Number(text);
  state.versus = null;
  await choose(first.image, first.name ?? first.image, { target: number(kept.target), tab });
  if (number(kept.versus) !== null) { state.versus = number(kept.versus); await refresh(); }
  document.body.dataset.ready = "true";
}

attempt(begin);
