// State, events, and the image with its map.

const HOME = about.cls ? 0 : PREFIX + Math.floor(ROWS / 2) * COLUMNS + Math.floor(COLUMNS / 2);

const state = {
  view: "attention",
  token: HOME, // the selected token; pointing at another one replaces it for the moment
  kept: false, // selected by a click: pointing then only shows values
  pointed: null, // the token under the pointer or the keyboard's cursor
  block: about.depth - 1,
  head: "mean",
  scale: "head",
  mark: "none",
  sorted: false,
  start: 0,
  best: 0,
  stream: about.depth,
  lens: "labels",
  tokens: "norms",
  base: Math.abs(Math.log(about.photoSize[0] / about.photoSize[1])) > Math.log(2.5) ? "seen" : "photo", // below the map
  opacity: 0.72,
};

let tensors;
let attention;
const $ = (id) => document.getElementById(id);

/** Return the query token of the view: the one pointed at, if none is selected and the view supports it. */
function queryToken() {
  const { follows } = VIEWS[state.view];
  if (!state.kept && state.pointed !== null && follows(state.pointed)) return state.pointed;
  return follows(state.token) ? state.token : HOME;
}

function change(some) {
  Object.assign(state, some);
  update();
}

let frame = null;

/** Redraw in the next frame; several requests make one redraw. */
function soon() {
  frame ??= requestAnimationFrame(() => {
    frame = null;
    update();
  });
}

function update() {
  const began = performance.now();
  const view = VIEWS[state.view];
  if (state.view === "attention" && !attention.loaded(state.block)) return;
  const map = view.map();
  paintMap($("map"), map);
  $("map").style.opacity = state.opacity;
  $("image").classList.toggle("grey", state.opacity > 0);
  showRing($("chosen"), VIEWS[state.view].follows(HOME) && queryToken() !== POOLED ? queryToken() : null);
  showRing($("pointed"), state.pointed);
  for (const ring of marks) showRing(ring, state.pointed ?? (state.kept ? state.token : null));
  writeLegend(map);
  writeChips(map);
  const told = state.pointed ?? (view.follows(HOME) ? queryToken() : null);
  $("readout").textContent = told === null ? "Point at a patch to see its value." : view.read(told, map);
  writeNote($("note"), view.note(map));
  view.update();
  $("blocks").querySelectorAll("i").forEach((bar, b) => bar.classList.toggle("now", inView(b)));
  performance.measure("minivit:update", { start: began, end: performance.now() });
}

/** Return whether the view shows this block; the strip marks it. */
function inView(block) {
  const { depth } = VIEWS[state.view];
  return { block: block === state.block, stream: block === state.stream - 1, start: block >= state.start }[depth];
}

function showRing(ring, token) {
  ring.hidden = token === null || token < PREFIX || token >= TOKENS;
  if (ring.hidden) return;
  ring.style.left = `${(100 * columnOf(token)) / COLUMNS}%`;
  ring.style.top = `${(100 * rowOf(token)) / ROWS}%`;
}

function writeLegend(map) {
  const legend = $("legend");
  if (map.rgb) {
    const kinds = (map.kinds ?? []).map(({ name, count, colour }) =>
      h("span", { className: "kind" }, h("i", { style: { "--colour": colour } }), `${name} ${count}`),
    );
    legend.replaceChildren(h("span", { className: "unit" }, map.unit), h("span", { className: "kinds" }, ...kinds));
    return;
  }
  legend.replaceChildren(
    h("span", { className: "colormap", style: { background: COLORMAP_CSS } }),
    h("span", { className: "ends" }, h("span", {}, number(map.low)), h("span", {}, number(map.high))),
    h("span", { className: "unit" }, map.unit),
  );
}

// --- prefix tokens

function buildChips() {
  const tokens = Array.from({ length: PREFIX }, (_, i) => i);
  if (about.classes && about.pooling !== "cls") tokens.push(POOLED);
  const chips = tokens.map((token) => {
    const parts = { swatch: h("i"), value: h("span", { className: "value" }) };
    const name = h("span", { className: "name" }, tokenName(token));
    const button = h("button", { type: "button", className: "chip" }, parts.swatch, name, parts.value);
    button.addEventListener("click", () => keep(token));
    button.addEventListener("pointerenter", () => point(token));
    button.addEventListener("pointerleave", () => point(null));
    return { token, button, ...parts };
  });
  $("chips").append(...chips.map(({ button }) => button));
  if (PREFIX) $("chips").append(h("span", { className: "chips-end" }, `+ ${times(ROWS, COLUMNS)} patches`));
  return chips;
}

let chips;

function writeChips(map) {
  for (const { token, button, swatch, value } of chips) {
    const known = map.prefix && token < PREFIX;
    swatch.hidden = !known;
    swatch.style.background = known ? mapColour(map.prefix[token], map.low, map.high) : "transparent";
    value.textContent = known ? number(map.prefix[token]) : (map.names?.[token] ?? "");
    button.setAttribute("aria-pressed", String(VIEWS[state.view].follows(token) && queryToken() === token));
    button.disabled = !VIEWS[state.view].follows(token);
    button.hidden = token === POOLED && state.view !== "lens";
  }
}

// --- pointing and choosing

function point(token) {
  if (token === state.pointed) return;
  state.pointed = token;
  soon();
}

function keep(token) {
  const again = state.kept && state.token === token;
  change(again ? { kept: false, token: HOME } : { kept: true, token });
}

const pointer = { place: null, keyed: false }; // where it was last, and whether keys have moved the cursor since

/** Return whether a mouse event comes from scrolling, not from the mouse: it must not move the keyboard's cursor. */
function atRest({ pointerType, screenX, screenY }) {
  const place = `${screenX} ${screenY}`;
  const rest = pointer.keyed && pointerType === "mouse" && place === pointer.place;
  Object.assign(pointer, { place, keyed: rest });
  return rest;
}

function tokenAt(event) {
  const { left, top, width, height } = $("box").getBoundingClientRect();
  const column = Math.floor(((event.clientX - left) / width) * COLUMNS);
  const row = Math.floor(((event.clientY - top) / height) * ROWS);
  return row >= 0 && row < ROWS && column >= 0 && column < COLUMNS ? PREFIX + row * COLUMNS + column : null;
}

/** Return where the patches are in the image below the map, as fractions of its sides. */
const boxInImage = () => (state.base === "seen" ? [0, 0, 1, 1] : about.box);

/** Build the choice of what is below the map: the image, or the model input, whose patches are square. */
function buildBase() {
  const names = { photo: "image", seen: "model input" };
  const show = (base) => {
    state.base = base;
    const [height, width] = about.imageSize;
    const image = $("image");
    image.src = about[base];
    image.alt = `${about.title}: ${names[base]}, below the map`;
    image.classList.toggle("pixels", base === "seen");
    $("photo").style.setProperty("--ratio", base === "seen" ? width / height : about.photoSize[0] / about.photoSize[1]);
    const [left, upper, right, lower] = boxInImage();
    const percents = { left, top: upper, width: right - left, height: lower - upper };
    for (const [side, fraction] of Object.entries(percents)) $("box").style[side] = `${100 * fraction}%`;
  };
  $("base").append(choice("Below the map", Object.entries(names), state.base, show).root);
  show(state.base);
}

function buildPhoto() {
  const photo = $("photo");
  const box = $("box");
  box.style.setProperty("--across", `${100 / COLUMNS}%`);
  box.style.setProperty("--down", `${100 / ROWS}%`);
  photo.addEventListener("pointermove", (event) => atRest(event) || point(tokenAt(event)));
  photo.addEventListener("pointerleave", (event) => atRest(event) || point(null));
  photo.addEventListener("click", (event) => {
    const token = tokenAt(event);
    if (token !== null) keep(token);
  });
  photo.addEventListener("keydown", byKey);
  photo.addEventListener("blur", () => point(null));
  photo.setAttribute("aria-label", `Patches in ${ROWS} rows and ${COLUMNS} columns`);
  $("photo-help").textContent =
    "Patches are (row, column), counted from 0. Point to preview, click or tap to select. Keys: arrows move, Enter selects, Escape clears the selection, [ and ] change the block.";
}

function byKey(event) {
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -COLUMNS], End: [0, COLUMNS] };
  const from = state.pointed ?? state.token;
  if (event.key in steps) {
    const [down, right] = steps[event.key];
    const start = from >= PREFIX && from < TOKENS ? from : null;
    const limit = (value, end) => Math.min(end - 1, Math.max(0, value));
    // From a prefix token, the first key goes to the middle of the image.
    const row = start === null ? Math.floor(ROWS / 2) : limit(rowOf(start) + down, ROWS);
    const column = start === null ? Math.floor(COLUMNS / 2) : limit(columnOf(start) + right, COLUMNS);
    state.pointed = PREFIX + row * COLUMNS + column;
    pointer.keyed = true;
    update();
  } else if (event.key === "Enter" || event.key === " ") {
    keep(from);
  } else if (event.key === "Escape") {
    change({ kept: false, token: HOME, pointed: null });
  } else if (event.key === "[" || event.key === "]") {
    const { depth } = VIEWS[state.view];
    const last = depth === "stream" ? about.depth : about.depth - 1;
    change({ [depth]: Math.min(last, Math.max(0, state[depth] + (event.key === "[" ? -1 : 1))) });
  } else {
    return;
  }
  event.preventDefault();
}

// --- tabs

function buildTabs() {
  const names = Object.keys(VIEWS);
  const tabs = names.map((name, i) => {
    const tab = h("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": "panel" }, VIEWS[name].name);
    tab.addEventListener("click", () => show(name));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const next = (i + step + names.length) % names.length;
      show(names[next]);
      tabs[next].focus();
    });
    return tab;
  });
  const panes = Object.fromEntries(names.map((name) => [name, h("div", { className: "pane" }, ...VIEWS[name].build())]));
  $("tabs").append(...tabs);
  $("controls").append(...Object.values(panes));
  const show = (name) => {
    names.forEach((other, i) => {
      tabs[i].setAttribute("aria-selected", String(other === name));
      tabs[i].tabIndex = other === name ? 0 : -1;
      panes[other].hidden = other !== name;
    });
    $("panel").setAttribute("aria-labelledby", `tab-${name}`);
    change({ view: name });
  };
  return show;
}

// --- buttons of the page

function buildTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const write = () => ($("theme").textContent = isDark() ? "Light" : "Dark");
  $("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    write();
  });
  dark.addEventListener("change", write);
  write();
}

async function save() {
  const view = VIEWS[state.view];
  const map = view.map();
  const { what, equation, live, not } = view.note(map);
  const rings = [[queryToken(), "#ffffff"], [state.pointed, "#56b4e9"]]
    .filter(([token]) => view.follows(HOME) && token !== null && token >= PREFIX && token < TOKENS)
    .map(([token, colour]) => ({ token, colour }));
  const sheet = drawView({
    image: $("image"),
    box: boxInImage(),
    canvas: $("map"),
    opacity: state.opacity,
    rings,
    map,
    title: `${view.name}: ${about.title} in ${about.model}`,
    lines: [what, equation, live, `It does not show ${not}`].filter(Boolean),
  });
  const blob = await new Promise((done) => sheet.toBlob(done, "image/png"));
  const link = h("a", { href: URL.createObjectURL(blob), download: `${about.title.replace(/\.[^.]*$/, "")}-${state.view}.png` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function start() {
  tensors = await readTensors();
  attention = new Attention(tensors.factor);
  await attention.load(state.block);
  $("title").textContent = about.title;
  $("about").textContent = [about.model, about.revision && about.revision.slice(0, 12),
    `${about.depth} blocks, ${about.heads} heads, width ${about.width}`].filter(Boolean).join(" \u00b7 ");
  $("colophon").textContent = "Written by minivit explore. This file contains everything; it loads nothing from the network.";
  buildStages();
  buildPhoto();
  buildBase();
  chips = buildChips();
  buildTabs()("attention");
  buildTheme();
  $("opacity").addEventListener("input", () => change({ opacity: Number($("opacity").value) / 100 }));
  $("save").addEventListener("click", save);
  performance.mark("minivit:shown");
  if (document.readyState === "loading") {
    await new Promise((done) => document.addEventListener("DOMContentLoaded", done, { once: true }));
  }
  for (let block = about.depth - 2; block >= 0; block--) {
    await attention.load(block);
    if (block === state.block) update();
  }
  performance.mark("minivit:ready");
  document.documentElement.dataset.ready = "true";
}

start().catch((error) => {
  $("readout").textContent = `This page cannot be shown: ${error.message}. It needs a browser from 2023 or later.`;
  throw error;
});
