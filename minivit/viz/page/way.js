// The strip: photo, what the network sees, patches, tokens, blocks, head, labels, each with its shape, and what leads
// from one to the next.

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
    "cls+mean": "the CLS token beside the mean of the patches",
    "cls&dist": "the CLS and the distillation token, a head for each",
    map: "what one more attention, the pool, gathers",
  }[about.pooling];
  const taken = { cls: "CLS", mean: "mean", "cls+mean": "CLS, mean", "cls&dist": "CLS, DIST", map: "pool" }[about.pooling];
  const best = about.best.length
    ? `${shortName(about.best[0])} ${percent(tensors.scores.at(0))}`
    : "no labels";
  return [
    {
      name: "Photo",
      shape: times(...about.photoSize),
      picture: () => h("img", { src: about.photo, alt: "" }),
      what: "The picture as the file holds it: upright, red, green and blue, 8 bits each.",
      live: `${times(...about.photoSize)} pixels, width by height. ${about.notes.map((n) => `${n}.`).join(" ")}`,
      not: "what the network reads. That is the next step, and often much less.",
    },
    {
      name: "Network sees",
      by: "prepare",
      shape: times(channels, height, width),
      picture: () => ringed(h("img", { src: about.seen, alt: "", className: "pixels" })),
      what: "Resized, cropped and normalised as the checkpoint's own files say; shown here with the normalisation undone.",
      equation: "x = (level / 255 \u2212 mean) / std, for each colour",
      live: about.preprocessing,
      not: "what lies outside of the crop: no later step can bring it back.",
    },
    {
      name: "Patches",
      by: "cut",
      shape: times(PATCHES, inPatch),
      picture: patchesPicture,
      what: `The picture is cut into ${grid} squares of ${times(patch, patch)} pixels. One matrix makes a vector of each.`,
      equation: `(${times(PATCHES, inPatch)}) \u00b7 (${times(inPatch, D)}) \u2192 ${times(PATCHES, D)}`,
      live: `${inPatch} = ${channels} colours \u00d7 ${patch} \u00d7 ${patch} pixels. No patch knows of its neighbours yet.`,
      not: "where a patch lies: until positions are added, shuffled patches would be all the same to the model.",
    },
    {
      name: "Tokens",
      by: "embed",
      shape: times(TOKENS, D),
      detail: sum,
      picture: tokensPicture,
      what: PREFIX
        ? "Learned tokens that are no patches are put in front, and every token is told its position by a vector added to it."
        : "Every token is told its position by a vector added to it.",
      equation: `x = ${PREFIX ? "[tokens in front, patches]" : "patches"} + positions,   ${sum}`,
      live: `${[...prefix, `${PATCHES} patches`].join(", ")}; colours are the tokens' three principal components.`,
      not: PREFIX
        ? "what the tokens in front mean: they are the same numbers for every picture until the first block."
        : "which of them will matter.",
    },
    {
      name: depth === 1 ? "1 block" : `${depth} blocks`,
      by: "attend",
      shape: times(TOKENS, D),
      picture: blocksPicture,
      what: "In every block the tokens first read from each other (attention), then each works on its own (MLP). Both only add to what is there.",
      equation: "x \u2190 x + attention(norm(x)),   x \u2190 x + MLP(norm(x))",
      live: `${heads} heads of ${headDim} (${times(heads, headDim)} = ${heads * headDim}), MLP of ${mlpWidth}; in and out ${times(TOKENS, D)}.`,
      not: "in which block anything is decided. Look inside, below.",
    },
    {
      name: classes ? "Head" : "Pooled",
      by: taken,
      shape: classes ? `${D} \u2192 ${classes}` : `${D}`,
      picture: headPicture,
      what: classes
        ? `The last norm, then one matrix reads ${read} and gives each class a number, its logit.`
        : `The last norm; the answer is ${read}, for this model has no head.`,
      equation: classes ? `logits = W \u00b7 pooled + b,   ${times(classes, D)} \u00b7 ${D} \u2192 ${classes}` : null,
      live: null,
      not: classes ? "anything a class was not trained for: there is no logit for \u201cnone of these\u201d." : "a label.",
    },
    ...(classes
      ? [
          {
            name: "Labels",
            by: "softmax",
            shape: best,
            picture: labelsPicture,
            what: "Softmax turns logits into shares that sum to 1.",
            equation: `p = exp(logit) / \u03a3 exp(logits),   over ${classes} classes`,
            live: about.best.map((c, t) => `${shortName(c)} ${number(tensors.scores.at(t))}`).join(",  "),
            not: "whether the answer is right: a share is of these classes only, however strange the photo.",
          },
        ]
      : []),
  ];
}

function patchesPicture() {
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

/** A picture of the patches, in which the patch that is looked at is marked. */
function ringed(picture) {
  const ring = h("span", { className: "ring mark", hidden: true });
  marks.push(ring);
  const root = h("span", { className: "ringed" }, picture, ring);
  root.style.setProperty("--across", `${100 / COLUMNS}%`);
  root.style.setProperty("--down", `${100 / ROWS}%`);
  return root;
}

const marks = [];

function tokensPicture() {
  const canvas = h("canvas", { className: "pixels", "aria-hidden": "true" });
  paintMap(canvas, { rgb: componentColours(tensors.pca.at(0)) });
  const front = Array.from({ length: PREFIX }, () => h("i"));
  return h("span", { className: "tokens" }, h("span", { className: "front" }, ...front), ringed(canvas));
}

function blocksPicture() {
  const bars = Array.from({ length: about.depth }, () => h("i"));
  return h("span", { className: "blocks", id: "blocks" }, ...bars);
}

function headPicture() {
  const dots = (count) => h("span", {}, ...Array.from({ length: count }, () => h("i")));
  return h("span", { className: "head-picture" }, dots(9), dots(5));
}

function labelsPicture() {
  const rows = about.best.slice(0, 3).map((c, t) =>
    h("span", {}, h("i", { style: { "--share": tensors.scores.at(t).toFixed(4) } }), h("b", {}, shortName(c))),
  );
  return h("span", { className: "labels-picture" }, ...rows);
}

function buildWay() {
  const all = stages();
  const note = document.getElementById("stage-note");
  const show = (chosen) => {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(all[i] === chosen)));
    writeNote(note, chosen);
  };
  const buttons = all.map((stage) => {
    const button = h("button", { type: "button", className: "stage-button", "aria-pressed": "false" });
    button.append(
      h("span", { className: "picture", "aria-hidden": "true" }, stage.picture()),
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
  // Where the strip is wider than the window, what is said below is of a stage in sight.
  const { left, width } = buttons[3].getBoundingClientRect();
  strip.scrollLeft = left + width / 2 - strip.getBoundingClientRect().left - strip.clientWidth / 2;
}
