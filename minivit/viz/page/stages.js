// The forward pass as a strip: image, model input, patches, tokens, blocks, head, labels, each with its shape, and
// the operation between them.

function stages() {
  const [height, width] = about.imageSize;
  const { patch, channels, depth, heads, headDim, mlpWidth, classes } = about;
  const D = about.width;
  const inPatch = channels * patch * patch;
  const grid = times(ROWS, COLUMNS);
  const prefix = [];
  if (about.cls) prefix.push("1 CLS");
  if (about.dist) prefix.push("1 distillation");
  if (about.registers) prefix.push(`${about.registers} register${about.registers > 1 ? "s" : ""}`);
  const sum = `${TOKENS} = ${PREFIX ? `${PREFIX} + ` : ""}${grid}`;
  const read = {
    cls: "the CLS token",
    mean: "the mean of the patches",
    "cls+mean": "the CLS token and the mean of the patches",
    "cls&dist": "the CLS and the distillation token, with one head each",
    map: "the output of the attention pool",
  }[about.pooling];
  const taken = { cls: "CLS", mean: "mean", "cls+mean": "CLS, mean", "cls&dist": "CLS, DIST", map: "pool" }[about.pooling];
  const best = about.best.length
    ? `${shortName(about.best[0])} ${percent(tensors.scores.at(0))}`
    : "no labels";
  return [
    {
      name: "Image",
      shape: times(...about.photoSize),
      sketch: () => h("img", { src: about.photo, alt: "" }),
      what: "The image in the file, upright: red, green and blue, 8 bits each.",
      live: `${times(...about.photoSize)} pixels, width by height. ${about.notes.map((n) => `${n}.`).join(" ")}`,
      not: "what the model sees. The model input is the next step, and often much smaller.",
    },
    {
      name: "Model input",
      by: "prepare",
      shape: times(channels, height, width),
      sketch: () => ringed(h("img", { src: about.seen, alt: "", className: "pixels" })),
      what: "Resized, cropped and normalised as the checkpoint's files say. Shown here without the normalisation.",
      equation: "x = (level / 255 \u2212 mean) / std, for each channel",
      live: about.preprocessing,
      not: "what is outside of the crop. No later step sees it.",
    },
    {
      name: "Patches",
      by: "cut",
      shape: times(PATCHES, inPatch),
      sketch: patchesSketch,
      what: `The image is cut into ${grid} patches of ${times(patch, patch)} pixels. One matrix maps each to a vector.`,
      equation: `(${times(PATCHES, inPatch)}) \u00b7 (${times(inPatch, D)}) \u2192 ${times(PATCHES, D)}`,
      live: `${inPatch} = ${channels} channels \u00d7 ${patch} \u00d7 ${patch} pixels. Patches do not exchange information yet.`,
      not: "where a patch is. Without position embeddings the order of patches would not matter.",
    },
    {
      name: "Tokens",
      by: "embed",
      shape: times(TOKENS, D),
      detail: sum,
      sketch: tokensSketch,
      what: PREFIX
        ? "Learned prefix tokens are put in front. A position embedding is added to every token."
        : "A position embedding is added to every token.",
      equation: `x = ${PREFIX ? "[prefix tokens, patches]" : "patches"} + positions,   ${sum}`,
      live: `${[...prefix, `${PATCHES} patches`].join(", ")}; colours show the first three principal components of the tokens.`,
      not: PREFIX
        ? "what the prefix tokens mean. Before the first block they are the same for every image."
        : "which tokens will matter.",
    },
    {
      name: depth === 1 ? "1 block" : `${depth} blocks`,
      by: "attend",
      shape: times(TOKENS, D),
      sketch: blocksSketch,
      what: "In every block, tokens attend to each other (attention), then each is transformed alone (MLP). Both add to the residual stream.",
      equation: "x \u2190 x + attention(norm(x)),   x \u2190 x + MLP(norm(x))",
      live: `${heads} heads of ${headDim} (${times(heads, headDim)} = ${heads * headDim}), MLP of ${mlpWidth}; in and out ${times(TOKENS, D)}.`,
      not: "which block decides the answer. See the maps below.",
    },
    {
      name: classes ? "Head" : "Pooled",
      by: taken,
      shape: classes ? `${D} \u2192 ${classes}` : `${D}`,
      sketch: headSketch,
      what: classes
        ? `The final norm, then one matrix maps ${read} to one logit for each class.`
        : `The final norm. The output is ${read}; this model has no head.`,
      equation: classes ? `logits = W \u00b7 pooled + b,   ${times(classes, D)} \u00b7 ${D} \u2192 ${classes}` : null,
      live: null,
      not: classes ? "anything outside of the trained classes. There is no logit for \u201cnone of these\u201d." : "a label.",
    },
    ...(classes
      ? [
          {
            name: "Labels",
            by: "softmax",
            shape: best,
            sketch: labelsSketch,
            what: "Softmax turns logits into probabilities that sum to 1.",
            equation: `p = exp(logit) / \u03a3 exp(logits),   over ${classes} classes`,
            live: about.best.map((c, t) => `${shortName(c)} ${number(tensors.scores.at(t))}`).join(",  "),
            not: "whether the answer is right. The probabilities always sum to 1 over these classes, also for an unrelated image.",
          },
        ]
      : []),
  ];
}

function patchesSketch() {
  const canvas = h("canvas", { "aria-hidden": "true" });
  const seen = h("img", { src: about.seen });
  seen.decode().then(() => {
    const cell = Math.max(4, Math.floor(264 / Math.max(ROWS, COLUMNS)));
    const gap = Math.max(1, Math.round(cell / 7));
    [canvas.width, canvas.height] = [COLUMNS * (cell + gap) - gap, ROWS * (cell + gap) - gap];
    const context = canvas.getContext("2d");
    const [across, down] = [seen.naturalWidth / COLUMNS, seen.naturalHeight / ROWS];
    for (let r = 0; r < ROWS; r++) {
      for (let c = 0; c < COLUMNS; c++) {
        context.drawImage(seen, c * across, r * down, across, down, c * (cell + gap), r * (cell + gap), cell, cell);
      }
    }
  });
  return ringed(canvas);
}

/** Wrap a drawing of the patches, in which the current patch is marked. */
function ringed(sketch) {
  const ring = h("span", { className: "ring mark", hidden: true });
  marks.push(ring);
  const root = h("span", { className: "ringed" }, sketch, ring);
  root.style.setProperty("--across", `${100 / COLUMNS}%`);
  root.style.setProperty("--down", `${100 / ROWS}%`);
  return root;
}

const marks = [];

function tokensSketch() {
  const canvas = h("canvas", { className: "pixels", "aria-hidden": "true" });
  paintMap(canvas, { rgb: componentColours(tensors.pca.at(0)) });
  const front = Array.from({ length: PREFIX }, () => h("i"));
  return h("span", { className: "tokens" }, h("span", { className: "front" }, ...front), ringed(canvas));
}

function blocksSketch() {
  const bars = Array.from({ length: about.depth }, () => h("i"));
  return h("span", { className: "blocks", id: "blocks" }, ...bars);
}

function headSketch() {
  const dots = (count) => h("span", {}, ...Array.from({ length: count }, () => h("i")));
  return h("span", { className: "head-picture" }, dots(9), dots(5));
}

function labelsSketch() {
  const rows = about.best.slice(0, 3).map((c, t) =>
    h("span", {}, h("i", { style: { "--fraction": tensors.scores.at(t).toFixed(4) } }), h("b", {}, shortName(c))),
  );
  return h("span", { className: "labels-picture" }, ...rows);
}

function buildStages() {
  const all = stages();
  const note = document.getElementById("stage-note");
  const show = (chosen) => {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(all[i] === chosen)));
    writeNote(note, chosen);
  };
  const buttons = all.map((stage) => {
    const button = h("button", { type: "button", className: "stage-button", "aria-pressed": "false" });
    button.append(
      h("span", { className: "sketch", "aria-hidden": "true" }, stage.sketch()),
      h("span", { className: "stage-name" }, stage.name),
      h("span", { className: "shape" }, stage.shape),
      ...(stage.detail ? [h("span", { className: "shape" }, stage.detail)] : []),
    );
    button.addEventListener("click", () => show(stage));
    return button;
  });
  const strip = document.getElementById("strip");
  const flow = (by) => (by ? [h("span", { className: "flow" }, h("span", {}, by))] : []);
  strip.append(...buttons.map((button, i) => h("li", {}, ...flow(all[i].by), button)));
  show(all[3]);
  // Where the strip is wider than the window, scroll to the selected stage.
  const { left, width } = buttons[3].getBoundingClientRect();
  strip.scrollLeft = left + width / 2 - strip.getBoundingClientRect().left - strip.clientWidth / 2;
}
