// From numbers to colours and canvases.

// The colormap of the page, from min to max: colours at equal distances, interpolated in between (colormaps.py).
const STOPS = about.colormap;
const COLORMAP = (() => {
  const stops = STOPS.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  const colours = new Uint8Array(256 * 3);
  for (let c = 0; c < 256; c++) {
    const place = (c / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(place), stops.length - 2);
    for (let i = 0; i < 3; i++) {
      colours[3 * c + i] = Math.round(stops[low][i] + (place - low) * (stops[low + 1][i] - stops[low][i]));
    }
  }
  return colours;
})();

// Told apart by colour-blind readers: Okabe and Ito 2008, then two of Tol 2018; grey for all others.
const KINDS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#882255", "#999933"];
const REST = "#8b8894";

/** Return the index (0 to 255) of a value in the colormap. */
function level(value, low, high) {
  if (!(high > low)) return 0;
  return Math.round(255 * Math.min(1, Math.max(0, (value - low) / (high - low))));
}

function mapColour(value, low, high) {
  const c = 3 * level(value, low, high);
  return `rgb(${COLORMAP[c]}, ${COLORMAP[c + 1]}, ${COLORMAP[c + 2]})`;
}

/** Draw a map on a canvas, one pixel for each patch; CSS enlarges it without smoothing. */
function paintMap(canvas, map) {
  if (canvas.width !== COLUMNS || canvas.height !== ROWS) [canvas.width, canvas.height] = [COLUMNS, ROWS];
  const context = canvas.getContext("2d");
  const image = (canvas.image ??= context.createImageData(COLUMNS, ROWS));
  const pixels = image.data;
  for (let p = 0; p < PATCHES; p++) {
    if (map.rgb) {
      for (let i = 0; i < 3; i++) pixels[4 * p + i] = map.rgb[3 * p + i];
    } else {
      const c = 3 * level(map.values[p], map.low, map.high);
      for (let i = 0; i < 3; i++) pixels[4 * p + i] = COLORMAP[c + i];
    }
    pixels[4 * p + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

/** Return three components (P, 3) as red, green and blue, each from its own min to its own max. */
function componentColours(components) {
  const rgb = new Uint8Array(PATCHES * 3);
  for (let i = 0; i < 3; i++) {
    let [low, high] = [Infinity, -Infinity];
    for (let p = 0; p < PATCHES; p++) {
      low = Math.min(low, components[3 * p + i]);
      high = Math.max(high, components[3 * p + i]);
    }
    for (let p = 0; p < PATCHES; p++) rgb[3 * p + i] = level(components[3 * p + i], low, high);
  }
  return rgb;
}

function hexBytes(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

function maxOf(values) {
  let high = -Infinity;
  for (const value of values) if (value > high) high = value;
  return high;
}

function minOf(values) {
  let low = Infinity;
  for (const value of values) if (value < low) low = value;
  return low;
}

/** The colormap as a CSS gradient. */
const COLORMAP_CSS = `linear-gradient(to right, ${STOPS.join(", ")})`;

/** Return the current view as one PNG, 1200 pixels wide: the image with its map, legend and description. */
function drawView({ image, box, canvas, opacity, rings, map, title, lines }) {
  const width = 1200;
  const scale = Math.min(width / image.naturalWidth, 1500 / image.naturalHeight);
  const [wide, height] = [image.naturalWidth * scale, Math.round(image.naturalHeight * scale)];
  const [pad, line, bar] = [28, 26, 14];
  const sheet = document.createElement("canvas");
  const text = sheet.getContext("2d");
  const font = (weight, size) => `${weight} ${size}px system-ui, sans-serif`;
  text.font = font(400, 18);
  const wrapped = lines.flatMap((words) => wrap(text, words, width - 2 * pad));
  // Place of each entry of the legend: x, and line.
  let [x, row] = [0, 0];
  const kinds = (map.kinds ?? []).map(({ name, count, colour }) => {
    const words = `${name} ${count}`;
    const wide = text.measureText(words).width + 46;
    if (x + wide > width - 2 * pad) [x, row] = [0, row + 1];
    const place = { words, colour, x: pad + x, row };
    x += wide;
    return place;
  });
  const legend = map.rgb ? (kinds.length ? line * (row + 1) + 12 : 0) : bar + 40;
  // Setting the size resets the font.
  [sheet.width, sheet.height] = [width, height + pad + 34 + legend + line * wrapped.length + pad];
  text.fillStyle = "#ffffff";
  text.fillRect(0, 0, sheet.width, sheet.height);
  text.imageSmoothingEnabled = !image.classList.contains("pixels");
  text.filter = opacity > 0 ? "grayscale(1)" : "none";
  const start = (width - wide) / 2;
  text.drawImage(image, start, 0, wide, height);
  text.filter = "none";
  const [left, upper] = [start + box[0] * wide, box[1] * height];
  const [across, down] = [(box[2] - box[0]) * wide, (box[3] - box[1]) * height];
  text.globalAlpha = opacity;
  text.imageSmoothingEnabled = false;
  text.drawImage(canvas, left, upper, across, down);
  text.globalAlpha = 1;
  text.lineWidth = 3;
  for (const { token, colour } of rings) {
    text.strokeStyle = colour;
    const [w, h] = [across / COLUMNS, down / ROWS];
    text.strokeRect(left + columnOf(token) * w, upper + rowOf(token) * h, w, h);
  }
  let y = height + pad + 14;
  text.fillStyle = "#1c1b22";
  text.font = font(600, 22);
  text.fillText(title, pad, y, width - 2 * pad);
  y += 20;
  text.font = font(400, 18);
  if (!map.rgb) {
    const gradient = text.createLinearGradient(pad, 0, pad + 360, 0);
    STOPS.forEach((stop, i) => gradient.addColorStop(i / (STOPS.length - 1), stop));
    text.fillStyle = gradient;
    text.fillRect(pad, y, 360, bar);
    text.fillStyle = "#1c1b22";
    text.fillText(number(map.low), pad, y + bar + 20);
    text.textAlign = "right";
    text.fillText(number(map.high), pad + 360, y + bar + 20);
    text.textAlign = "left";
    text.fillText(map.unit, pad + 380, y + bar);
  }
  for (const kind of kinds) {
    text.fillStyle = kind.colour;
    text.fillRect(kind.x, y + line * kind.row, 16, 16);
    text.fillStyle = "#1c1b22";
    text.fillText(kind.words, kind.x + 23, y + line * kind.row + 15);
  }
  y += legend;
  for (const words of wrapped) text.fillText(words, pad, (y += line) - 6);
  return sheet;
}

function wrap(context, words, width) {
  const lines = [""];
  for (const word of words.split(" ")) {
    const longer = `${lines.at(-1)} ${word}`.trim();
    if (context.measureText(longer).width > width && lines.at(-1)) lines.push(word);
    else lines[lines.length - 1] = longer;
  }
  return lines;
}
