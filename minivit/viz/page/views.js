// The views. Each defines a map over the image, the controls beside it, and a description.
//   build()    make the controls, once   update()   update them from the state
//   map()      {values | rgb, low, high, unit, prefix}: `prefix` are the values of the prefix tokens
//   note()     the description           read(token)   one line about the token under the pointer
//   follows    whether a token can be the query          depth   the state's key for the block

const FUSIONS = { mean: "mean of all heads", max: "max of all heads" };
const streamName = (stream) => (stream === 0 ? "before block 0" : `after block ${stream - 1}`);

function strongest(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

const fullScale = (values) => ({ values, low: minOf(values), high: maxOf(values) });

// --- attention

const attentionView = {
  name: "Attention",
  depth: "block",
  follows: (token) => token < about.queries,

  build() {
    const headName = (a) => `head ${a}`;
    const options = [
      ...Object.entries(FUSIONS),
      ...Array.from({ length: about.heads }, (_, a) => [String(a), headName(a)]),
    ];
    const last = about.depth - 1;
    this.block = slider("Block", { min: 0, max: last, value: state.block, say: (b) => `${b} of ${last}`,
      pick: (block) => change({ block }) });
    this.head = list("Head", options, state.head, (value) => change({ head: value in FUSIONS ? value : Number(value) }));
    this.scale = choice("Colour scale", [["head", "per head"], ["shared", "shared"]], state.scale, (scale) => change({ scale }));
    this.mark = choice("Mark heads by", [["none", "nothing"], ["distance", "distance"], ["entropy", "entropy"]],
      state.mark, (mark) => change({ mark, sorted: mark !== "none" && state.sorted }));
    this.sorted = h("input", { type: "checkbox", id: "sorted" });
    this.sorted.addEventListener("change", () => change({ sorted: this.sorted.checked }));
    this.thumbs = new Thumbs("Every head of every block", {
      rows: about.depth,
      columns: about.heads,
      rowName: String,
      columnName: String,
      pick: (block, head) => change({ block, head }),
    });
    this.pending = null;
    this.markText = h("p", { className: "hint", id: "mark-text" });
    return [
      h("div", { className: "controls" }, this.block.root, this.head.root, this.scale.root, this.mark.root,
        h("div", { className: "control" }, h("label", { className: "check", for: "sorted" }, this.sorted,
          h("span", {}, "sort heads in each block")))),
      h("h3", { id: "thumbs-title" }, ""),
      this.markText,
      this.thumbs.root,
    ];
  },

  update() {
    this.block.set(state.block);
    this.head.set(String(state.head));
    this.scale.set(state.scale);
    this.mark.set(state.mark);
    this.sorted.disabled = state.mark === "none";
    this.sorted.checked = state.sorted;
    this.thumbs.choose(typeof state.head === "number" ? state.block : null, state.head);
    const key = `${state.mark} ${state.sorted}`;
    if (this.marked !== key) this.markHeads();
    this.marked = key;
    this.drawThumbs();
  },

  markHeads() {
    const values = state.mark === "none" ? null : tensors[state.mark];
    const high = values ? maxOf(values.data) : 1;
    for (let b = 0; b < about.depth; b++) {
      for (let a = 0; a < about.heads; a++) {
        const [distance, entropy] = [tensors.distance.at(b, a), tensors.entropy.at(b, a)];
        const text = `block ${b}, head ${a}: distance ${number(distance)} pixels, entropy ${number(entropy)} nats`;
        this.thumbs.mark(b, a, values ? values.at(b, a) / high : null, text);
      }
    }
    const order = (b) => [...tensors[state.mark].at(b).keys()].sort((i, j) => values.at(b, i) - values.at(b, j));
    this.thumbs.sort(state.sorted ? Array.from({ length: about.depth }, (_, b) => order(b)) : null);
    this.markText.textContent = {
      none: `Rows are blocks, columns are heads. Select one to see it over the image.${about.maps === "all" ? "" : " This page contains the attention of the prefix tokens only; a patch cannot be the query."}`,
      distance: `Bar: mean attention distance in pixels; the max is ${number(high)}.`,
      entropy: `Bar: mean entropy of attention in nats: 0 for one token, ln ${TOKENS} = ${number(Math.log(TOKENS))} for uniform attention; the max is ${number(high)}.`,
    }[state.mark];
  },

  /** Draw all maps of the query over several frames, so that pointing never waits for them. */
  drawThumbs() {
    const query = queryToken();
    const key = `${query} ${state.scale}`;
    if (this.drawn === key) return;
    this.drawn = key;
    document.getElementById("thumbs-title").textContent = `What ${tokenName(query)} attends to, in every head`;
    cancelAnimationFrame(this.pending);
    const steps = this.steps(query);
    const work = () => {
      const until = performance.now() + 6;
      while (performance.now() < until) {
        const { done, value } = steps.next();
        if (done) return;
        if (value === "waiting") break;
      }
      this.pending = requestAnimationFrame(work);
    };
    this.pending = requestAnimationFrame(work);
  },

  /** One head at a time. */
  *steps(query) {
    const row = new Float64Array(TOKENS);
    const values = row.subarray(PREFIX);
    for (let b = 0; b < about.depth; b++) {
      while (!attention.loaded(b)) yield "waiting";
      for (let a = 0; a < about.heads; a++) {
        attention.head(b, a, query, row);
        this.thumbs.draw(b, a, { values, low: 0, high: this.high(values, query) });
        yield;
      }
    }
  },

  high: (values, query) => (state.scale === "shared" ? tensors.greatest.at(query) : maxOf(values)),

  map() {
    const query = queryToken();
    const row = attention.row(state.block, state.head, query);
    const values = row.subarray(PREFIX);
    return {
      values,
      prefix: row.subarray(0, PREFIX),
      row,
      low: 0,
      high: this.high(values, query),
      unit: state.scale === "shared"
        ? `attention probability; one scale for all heads and blocks, from 0 to the max from ${tokenName(query)} to a patch`
        : "attention probability; from 0 to the max of this map",
    };
  },

  headText: () => (typeof state.head === "number" ? `head ${state.head}` : FUSIONS[state.head]),

  note(map) {
    const query = queryToken();
    const of = Array.from(map.prefix, (p, i) => `${tokenName(i)} ${number(p)}`);
    const best = strongest(map.row);
    const over = { mean: "mean\u2095 ", max: "max\u2095 " }[state.head] ?? "";
    // Apart from rounding, the sum is 1. The max of several heads does not sum to 1.
    const total = state.head === "max" ? ` = ${number(sum(map.row))}, from several heads` : " \u2248 1";
    const packing = about.packing.kind === "maps"
      ? `Probabilities are stored in one byte each: relative error at most ${percent(about.error)}, below 0.0000163 they are 0.`
      : `Computed from queries and keys of 14 bits: relative error at most ${percent(about.error)}.`;
    return {
      what: `How much ${tokenName(query)} attends to every token in block ${state.block}, ${this.headText()}.`,
      equation: `${over}softmax(q \u00b7 k\u1d40 / \u221a${about.headDim}):   ${[...of, `${PATCHES} patches ${number(sum(map.values))}`].join(" + ")}${total}`,
      live: `Max: ${tokenName(best)}, ${number(map.row[best])}, ${number(map.row[best] * TOKENS)} times uniform attention (1/${TOKENS} = ${number(1 / TOKENS)}). ${packing}`,
      not: "whether it matters for the output. The value vector may be near zero, and in late blocks every token carries information about the whole image.",
    };
  },

  read(token, map) {
    const query = queryToken();
    if (state.pointed === null || (token === query && !state.kept)) {
      const best = strongest(map.row);
      return `${tokenName(query)} attends most to ${tokenName(best)}: ${number(map.row[best])}, to itself ${number(map.row[query])}`;
    }
    return `${tokenName(query)} attends to ${tokenName(token)}: ${number(map.row[token])}, ${number(map.row[token] * TOKENS)} times uniform attention`;
  },
};

// --- rollout and relevance: a map for every first block

function startControls(view, text) {
  const last = about.depth - 1;
  view.start = slider("Start at block", { min: 0, max: last, value: state.start, say: (b) => `${b} of ${last}`,
    pick: (start) => change({ start }) });
  view.thumbs = new Thumbs(text, {
    rows: 1,
    columns: about.depth,
    columnName: String,
    pick: (_, start) => change({ start }),
  });
  for (let b = 0; b < about.depth; b++) view.thumbs.mark(0, b, null, `start at block ${b}`);
}

const rolloutView = {
  name: "Rollout",
  depth: "start",
  follows: () => false,

  build() {
    startControls(this, "Rollout from every first block");
    for (let b = 0; b < about.depth; b++) this.thumbs.draw(0, b, fullScale(tensors.rollout.at(b)));
    return [
      h("div", { className: "controls" }, this.start.root),
      h("h3", {}, "Every first block"),
      h("p", { className: "hint" }, "Each map has its own colour scale, from its min to its max."),
      this.thumbs.root,
    ];
  },

  update() {
    this.start.set(state.start);
    this.thumbs.choose(0, state.start);
  },

  map: () => ({
    ...fullScale(tensors.rollout.at(state.start)),
    unit: "fraction of the row after all blocks; from the min to the max of this map",
  }),

  who: about.cls ? "CLS" : "the mean of the patches",

  note(map) {
    const count = about.depth - state.start;
    const best = strongest(map.values);
    const total = sum(map.values);
    const rest = PREFIX ? `, ${number(1 - total)} on ${PREFIX > 1 ? "the prefix tokens" : "CLS itself"}` : "";
    return {
      what: `How much of every patch reaches ${this.who} after all blocks, if only attention moved information (Abnar & Zuidema 2020).`,
      equation: `A\u0302 = \u00bd I + \u00bd mean\u2095(A),   R = A\u0302${sub(about.depth - 1)}${count > 2 ? " \u22ef " : count > 1 ? " " : ""}${count > 1 ? `A\u0302${sub(state.start)}` : ""}   (${count} ${count > 1 ? "matrices" : "matrix"})`,
      live: `${number(total)} of the row is on the patches${rest}. Max: ${tokenName(best + PREFIX)}, ${number(map.values[best])}.`,
      not: "anything about the class: the map is the same for every class. It ignores values and MLPs, and the \u00bd is a convention.",
    };
  },

  read: (token, map) =>
    token < PREFIX
      ? `${tokenName(token)} is not a patch and is not in the map`
      : `${tokenName(token)}: ${number(map.values[token - PREFIX])}, rank ${rank(map.values, token - PREFIX)} of ${PATCHES}`,
};

const sub = (n) => String(n).replace(/\d/g, (digit) => "\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089"[digit]);

const rank = (values, place) => 1 + values.reduce((before, value) => before + (value > values[place]), 0);

const relevanceView = {
  name: "Relevance",
  depth: "start",
  follows: () => false,

  build() {
    startControls(this, "Relevance from every first block");
    this.classes = h("div", { className: "bars", role: "group", "aria-label": "Target class" });
    return [
      h("h3", {}, "Target class"),
      this.classes,
      h("div", { className: "controls" }, this.start.root),
      h("h3", {}, "Every first block"),
      h("p", { className: "hint" }, "Each map has its own colour scale, from its min to its max."),
      this.thumbs.root,
    ];
  },

  update() {
    this.start.set(state.start);
    this.thumbs.choose(0, state.start);
    if (this.of === state.best) return;
    this.of = state.best;
    for (let b = 0; b < about.depth; b++) this.thumbs.draw(0, b, fullScale(tensors.relevance.at(state.best, b)));
    classBars(this.classes);
  },

  map: () => ({
    ...fullScale(tensors.relevance.at(state.best, state.start)),
    unit: "relevance; from the min to the max of this map",
  }),

  note(map) {
    const best = strongest(map.values);
    const total = sum(map.values);
    const name = shortName(about.best[state.best]);
    const tenth = Math.ceil(PATCHES / 10);
    const top = total > 0 ? sum([...map.values].sort((a, b) => b - a).slice(0, tenth)) / total : 0;
    return {
      what: `Which patches support \u201c${name}\u201d: attention weighted by its positive gradient for the logit, propagated ${about.pooling === "map" ? "from the attention pool " : ""}through blocks ${state.start} to ${about.depth - 1} (Chefer et al. 2021).`,
      equation: `A\u0304 = mean\u2095(max(\u2202logit/\u2202A \u00b7 A, 0)),   R \u2190 R + A\u0304 R   (${about.depth - state.start} times)`,
      live: `Max: ${tokenName(best + PREFIX)}, ${number(map.values[best])}. The top ${tenth} of ${PATCHES} patches have ${percent(top)} of the total. Probability of \u201c${name}\u201d: ${number(tensors.scores.at(state.best))}.`,
      not: "evidence against the class, or the effect of removing a patch. Use minivit ablate for that.",
    };
  },

  read: rolloutView.read,
};

/** Draw the most likely classes as bars; one of them is selected. */
function classBars(root) {
  const focused = [...root.children].indexOf(document.activeElement);
  root.replaceChildren(
    ...about.best.map((index, t) =>
      barRow({
        name: className(index),
        fraction: tensors.scores.at(t),
        value: number(tensors.scores.at(t)),
        colour: KINDS[t] ?? REST,
        picked: t === state.best,
        pick: () => change({ best: t }),
      }),
    ),
  );
  if (focused >= 0) root.children[focused].focus();
}

// --- the logit lens

const lensView = {
  name: "Logit lens",
  depth: "stream",
  follows: () => true,

  build() {
    this.rows = h("div", { className: "lens", role: "group", "aria-label": "Top label after every block" });
    this.show = choice("Map", [["labels", "top label of every patch"], ["class", "one class"]], state.lens,
      (lens) => change({ lens }));
    this.classes = h("div", { className: "bars", role: "group", "aria-label": "Class of the map" });
    this.title = h("h3", {});
    this.buttons = Array.from({ length: about.depth + 1 }, (_, s) => {
      const parts = about.best.map((_, t) => h("i", { style: { "--colour": KINDS[t] ?? REST } }));
      const [label, value] = [h("span", { className: "label" }), h("span", { className: "value" })];
      const button = h("button", { type: "button" }, h("span", { className: "name" }, s ? String(s - 1) : "in"),
        h("span", { className: "track", "aria-hidden": "true" }, ...parts), label, value);
      button.addEventListener("click", () => change({ stream: s }));
      return { button, parts, label, value };
    });
    this.rows.append(...this.buttons.map(({ button }) => button));
    return [
      this.title,
      h("p", { className: "hint" }, "One row for every block; \u201cin\u201d is before the first. The bar shows the top classes of the final output, the text the top label at this block."),
      this.rows,
      h("div", { className: "controls" }, this.show.root),
      this.classes,
    ];
  },

  update() {
    const token = queryToken();
    this.title.textContent = `Logit lens of ${tokenName(token)} after every block`;
    this.show.set(state.lens);
    this.buttons.forEach(({ button, parts, label, value }, s) => {
      const probs = tensors.lens.at(s, token);
      parts.forEach((bar, t) => bar.style.setProperty("--fraction", probs[t].toFixed(4)));
      const top = tensors.lensLabels.at(s, token, 0);
      label.textContent = shortName(top);
      value.textContent = number(tensors.lensScores.at(s, token, 0));
      const place = about.best.indexOf(top);
      label.style.setProperty("--colour", place < 0 ? REST : (KINDS[place] ?? REST));
      button.setAttribute("aria-pressed", String(s === state.stream));
    });
    if (this.of !== state.best) classBars(this.classes);
    this.of = state.best;
  },

  map() {
    const s = state.stream;
    if (state.lens === "class") {
      const all = tensors.lens.at(s);
      const T = about.best.length;
      const values = Float32Array.from({ length: PATCHES }, (_, p) => all[(p + PREFIX) * T + state.best]);
      const prefix = Float32Array.from({ length: PREFIX }, (_, i) => all[i * T + state.best]);
      return { values, prefix, low: 0, high: maxOf(values),
        unit: `probability of \u201c${shortName(about.best[state.best])}\u201d ${streamName(s)}; from 0 to the max of this map` };
    }
    const labels = Array.from({ length: TOKENS }, (_, n) => tensors.lensLabels.at(s, n, 0));
    const kinds = this.kinds(labels.slice(PREFIX));
    const colour = new Map(kinds.map((kind) => [kind.label, hexBytes(kind.colour)]));
    const rgb = new Uint8Array(PATCHES * 3);
    for (let p = 0; p < PATCHES; p++) rgb.set(colour.get(labels[p + PREFIX]) ?? hexBytes(REST), 3 * p);
    return { rgb, kinds, names: labels.slice(0, PREFIX).map(shortName), unit: `top label ${streamName(s)}` };
  },

  /** Return the labels of a map with their colours: first the classes of the final output, then the most frequent. */
  kinds(labels) {
    const counts = new Map();
    for (const label of labels) counts.set(label, (counts.get(label) ?? 0) + 1);
    const free = KINDS.slice(about.best.length);
    const sorted = [...counts].sort((a, b) => b[1] - a[1]);
    const kinds = [];
    for (const [label, count] of sorted) {
      const place = about.best.indexOf(label);
      const colour = place >= 0 && KINDS[place] ? KINDS[place] : free.shift();
      if (colour) kinds.push({ label, name: shortName(label), count, colour });
    }
    const rest = labels.length - kinds.reduce((total, kind) => total + kind.count, 0);
    if (rest) kinds.push({ label: null, name: `${counts.size - kinds.length} other labels`, count: rest, colour: REST });
    return kinds;
  },

  note() {
    const [s, token] = [state.stream, queryToken()];
    const top = tensors.lensLabels.at(s, token);
    const scores = tensors.lensScores.at(s, token);
    return {
      what: `The final norm and head applied ${streamName(s)} to ${token === POOLED ? "the pooled output" : tokenName(token)} (logit lens, nostalgebraist 2020).`,
      equation: `softmax(head(norm(x${s ? sub(s - 1) : "\u1d62\u2099"}))):   ${Array.from(top, (c, j) => `${shortName(c)} ${number(scores[j])}`).join(",  ")}`,
      live: null,
      not: "all that a block represents. The head was trained for the last block only; earlier blocks and patches may encode classes differently.",
    };
  },

  read(token) {
    const top = tensors.lensLabels.at(state.stream, token);
    const scores = tensors.lensScores.at(state.stream, token);
    return `${tokenName(token)} ${streamName(state.stream)}: ${Array.from(top, (c, j) => `${shortName(c)} ${number(scores[j])}`).join(", ")}`;
  },
};

// --- tokens

const tokensView = {
  name: "Tokens",
  depth: "stream",
  follows: () => false,

  build() {
    const say = streamName;
    this.stream = slider("Where", { min: 0, max: about.depth, value: state.stream, say, pick: (stream) => change({ stream }) });
    this.show = choice("Show", [["norms", "L2 norm"], ["pca", "principal components"]], state.tokens,
      (tokens) => change({ tokens }));
    this.thumbs = new Thumbs("Tokens after every block", {
      rows: 1,
      columns: about.depth + 1,
      columnName: (s) => (s ? String(s - 1) : "in"),
      pick: (_, stream) => change({ stream }),
    });
    for (let s = 0; s <= about.depth; s++) this.thumbs.mark(0, s, null, s ? streamName(s) : `in, ${streamName(s)}`);
    return [
      h("div", { className: "controls" }, this.show.root, this.stream.root),
      h("h3", {}, "Before the first block and after each"),
      h("p", { className: "hint" }, "Each map has its own colour scale."),
      this.thumbs.root,
    ];
  },

  update() {
    this.stream.set(state.stream);
    this.show.set(state.tokens);
    this.thumbs.choose(0, state.stream);
    if (this.of === state.tokens) return;
    this.of = state.tokens;
    for (let s = 0; s <= about.depth; s++) this.thumbs.draw(0, s, this.at(s));
  },

  at: (s) =>
    state.tokens === "pca"
      ? { rgb: componentColours(tensors.pca.at(s)), unit: "red, green, blue: components 1, 2, 3, each from its min to its max" }
      : { ...fullScale(tensors.norms.at(s).subarray(PREFIX)), prefix: tensors.norms.at(s).subarray(0, PREFIX),
          unit: "L2 norm of the token; from the min to the max of this map" },

  map() {
    return this.at(state.stream);
  },

  note(map) {
    const where = streamName(state.stream);
    if (state.tokens === "pca") {
      return {
        what: `The first three principal components of the patch tokens ${where}, as red, green and blue.`,
        equation: `(x \u2212 mean) \u00b7 V,   ${times(PATCHES, about.width)} \u2192 ${times(PATCHES, 3)}`,
        live: `They explain ${percent(tensors.pcaShare.at(state.stream))} of the variance between patches.`,
        not: "what a colour means. The sign is arbitrary, and the components are different after every block.",
      };
    }
    const sorted = [...map.values].sort((a, b) => a - b);
    const middle = sorted[Math.floor(PATCHES / 2)];
    const best = strongest(map.values);
    return {
      what: `L2 norm of every token ${where}.`,
      equation: `\u2016x\u2016 = \u221a(x\u2081\u00b2 + \u22ef + x${sub(about.width)}\u00b2) = ${number(map.values[best])} of ${tokenName(best + PREFIX)}`,
      live: `Max: ${number(map.values[best] / middle)} times the median of ${number(middle)}.`,
      not: "importance. A few tokens of very large norm on plain background are a known artefact of large models; register tokens remove it.",
    };
  },

  read(token, map) {
    const norm = number(tensors.norms.at(state.stream, token));
    if (state.tokens === "norms") return `${tokenName(token)} ${streamName(state.stream)}: L2 norm ${norm}`;
    if (token < PREFIX) return `${tokenName(token)} is not a patch and has no components`;
    const parts = tensors.pca.at(state.stream, rowOf(token), columnOf(token));
    return `${tokenName(token)}: components ${Array.from(parts, number).join(", ")}`;
  },
};

const VIEWS = {
  attention: attentionView,
  rollout: rolloutView,
  ...(about.classes ? { relevance: relevanceView, lens: lensView } : {}),
  tokens: tokensView,
};
