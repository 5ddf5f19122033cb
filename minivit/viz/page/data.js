// The data of the page: a description in JSON, and packed blocks of numbers. Nothing is fetched.
// Letters as in minivit: A heads, N tokens, K size of a head, P patches; a stream is the tokens before the first block
// or after one of them.

const about = JSON.parse(document.getElementById("about-data").textContent);
const [ROWS, COLUMNS] = about.grid;
const PATCHES = ROWS * COLUMNS;
const PREFIX = about.cls + about.dist + about.registers;
const TOKENS = PREFIX + PATCHES;
const POOLED = TOKENS; // the row of the lens that is no token: the pooled output

/** Return the bytes of one block: base64, then zlib. */
async function unpack(id) {
  const element = document.getElementById(id);
  const text = element.textContent;
  element.remove();
  // fromBase64 is many times as fast; browsers have it since 2025
  const bytes = Uint8Array.fromBase64?.(text) ?? Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const inflated = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(inflated).arrayBuffer());
}

/** Return all small tensors by name, each {shape, data}; they are stored in one block, one after the other. */
async function readTensors() {
  const { buffer } = await unpack("tensors");
  const tensors = {};
  let offset = 0;
  for (const [name, { shape, type }] of Object.entries(about.tensors)) {
    const length = shape.reduce((product, side) => product * side, 1);
    const data = type === "int32" ? new Int32Array(buffer, offset, length) : new Float32Array(buffer, offset, length);
    tensors[name] = { shape, data, at: (...index) => part(data, shape, index) };
    offset += 4 * length;
  }
  return tensors;
}

/** Return the part at an index of the first axes: a number if all axes are given, else a view. */
function part(data, shape, index) {
  let [start, length] = [0, data.length];
  index.forEach((place, axis) => {
    length /= shape[axis];
    start += place * length;
  });
  return index.length === shape.length ? data[start] : data.subarray(start, start + length);
}

/** Attention probabilities, a row at a time: one query in one block and head. */
class Attention {
  constructor(factor) {
    this.factor = factor;
    this.blocks = [];
    if (about.packing.kind === "maps") {
      this.levels = Float64Array.from({ length: 256 }, (_, c) => (c ? 2 ** ((c - 255) / about.packing.steps) : 0));
    }
  }

  async load(block) {
    const bytes = await unpack(`attention-${block}`);
    if (about.packing.kind === "maps") {
      this.blocks[block] = bytes;
      return;
    }
    const count = bytes.length / 2; // 16-bit numbers, all their low bytes first
    const numbers = new Int16Array(count);
    for (let i = 0; i < count; i++) numbers[i] = bytes[i] | (bytes[count + i] << 8);
    const queries = about.heads * about.queries * about.headDim;
    this.blocks[block] = { q: numbers.subarray(0, queries), k: numbers.subarray(queries) };
  }

  loaded(block) {
    return this.blocks[block] !== undefined;
  }

  /** Write the row of one head, N probabilities, into `out`. */
  head(block, head, query, out) {
    const packed = this.blocks[block];
    if (about.packing.kind === "maps") {
      const start = (head * about.queries + query) * TOKENS;
      for (let m = 0; m < TOKENS; m++) out[m] = this.levels[packed[start + m]];
      return out;
    }
    // softmax(q k / sqrt(K)), the max score subtracted before the exponential
    const size = about.headDim;
    const q = packed.q.subarray((head * about.queries + query) * size, (head * about.queries + query + 1) * size);
    const k = packed.k.subarray(head * TOKENS * size, (head + 1) * TOKENS * size);
    const factor = this.factor.at(block, head);
    let max = -Infinity;
    for (let m = 0, at = 0; m < TOKENS; m++) {
      let dot = 0;
      for (let i = 0; i < size; i++, at++) dot += q[i] * k[at];
      out[m] = dot * factor;
      if (out[m] > max) max = out[m];
    }
    let sum = 0;
    for (let m = 0; m < TOKENS; m++) sum += out[m] = Math.exp(out[m] - max);
    for (let m = 0; m < TOKENS; m++) out[m] /= sum;
    return out;
  }

  /** As `head`, for one head by its number, or for the "mean" or "max" of all. */
  row(block, fusion, query) {
    const out = new Float64Array(TOKENS);
    if (typeof fusion === "number") return this.head(block, fusion, query, out);
    const one = new Float64Array(TOKENS);
    for (let head = 0; head < about.heads; head++) {
      this.head(block, head, query, one);
      for (let m = 0; m < TOKENS; m++) {
        out[m] = fusion === "mean" ? out[m] + one[m] / about.heads : Math.max(out[m], one[m]);
      }
    }
    if (fusion === "mean" && about.packing.kind === "maps") {
      // Behind the heads: the mean, where that of the packed heads is not as exact as a head.
      this.head(block, about.heads, query, one);
      for (let m = 0; m < TOKENS; m++) if (one[m] > 0) out[m] = one[m];
    }
    return out;
  }
}

// Names of tokens, and numbers as text.

function tokenName(token) {
  if (token === POOLED) return "pooled output";
  if (token < about.cls) return "CLS";
  if (token < about.cls + about.dist) return "DIST";
  if (token < PREFIX) return `register ${token - about.cls - about.dist}`;
  return `patch (${rowOf(token)}, ${columnOf(token)})`;
}

const rowOf = (token) => Math.floor((token - PREFIX) / COLUMNS);
const columnOf = (token) => (token - PREFIX) % COLUMNS;

function className(index) {
  return about.labels[index] ?? `class ${index}`;
}

/** Return the first name of a class: "tabby" of "tabby, tabby cat". */
function shortName(index) {
  return className(index).split(",")[0];
}

/** Return a number with three significant digits. */
function number(value) {
  const size = Math.abs(value);
  if (size >= 1e6 || (size < 1e-6 && value !== 0)) return value.toExponential(2).replace("e-", "e\u2212").replace("e+", "e");
  const decimals = size > 0 ? Math.max(0, 2 - Math.floor(Math.log10(size))) : 0;
  return Number(value.toPrecision(3)).toFixed(Math.min(decimals, 9)).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
}

function percent(fraction) {
  if (fraction > 0 && fraction < 0.0005) return "< 0.1%";
  return `${(100 * fraction).toFixed(1)}%`;
}

const times = (...sides) => sides.join(" \u00d7 ");
