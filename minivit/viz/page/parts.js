// Parts of the user interface. Text is always inserted as text, never as markup.

/** An element: h("button", {type: "button", onclick}, "text", child, ...). */
function h(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "style") for (const [property, v] of Object.entries(value)) element.style.setProperty(property, v);
    else if (key.startsWith("aria-") || key === "role" || key === "for") element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children);
  return element;
}

let labels = 0;

/** Return a slider with its name and its value as text. */
function slider(name, { min, max, value, say, pick }) {
  const id = `slider-${labels++}`;
  const output = h("output", { htmlFor: id });
  const input = h("input", { type: "range", id, min, max, step: 1, value });
  const set = (to) => {
    input.value = to;
    output.textContent = say(to);
    input.setAttribute("aria-valuetext", say(to));
  };
  input.addEventListener("input", () => {
    set(Number(input.value));
    pick(Number(input.value));
  });
  set(value);
  return { root: h("div", { className: "control" }, h("label", { for: id }, name), input, output), set };
}

/** Return a group of radio buttons. */
function choice(name, options, picked, pick) {
  const group = `choice-${labels++}`;
  const inputs = options.map(([value, text]) => {
    const input = h("input", { type: "radio", name: group, value, checked: value === picked });
    input.addEventListener("change", () => pick(value));
    return h("label", {}, input, h("span", {}, text));
  });
  const set = (to) => inputs.forEach((label) => (label.firstChild.checked = label.firstChild.value === String(to)));
  const legend = h("span", { className: "name", id: group }, name);
  const root = h("div", { className: "control" }, legend);
  root.append(h("div", { className: "choice", role: "radiogroup", "aria-labelledby": group }, ...inputs));
  return { root, set };
}

/** Return a drop-down list. */
function list(name, options, picked, pick) {
  const id = `list-${labels++}`;
  const select = h("select", { id }, ...options.map(([value, text]) => h("option", { value }, text)));
  select.value = picked;
  select.addEventListener("change", () => pick(select.value));
  const root = h("div", { className: "control" }, h("label", { for: id }, name), select);
  return { root, set: (to) => (select.value = to) };
}

/**
 * Small maps in rows and columns; one is selected. One tab stop; arrow keys move inside.
 * `order[row]` lists the column numbers from left to right, so that a row can be sorted.
 */
class Thumbs {
  constructor(name, { rows, columns, rowName, columnName, pick }) {
    Object.assign(this, { rows, columns, pick });
    this.order = Array.from({ length: rows }, () => Array.from({ length: columns }, (_, c) => c));
    this.root = h("div", { className: "thumbs", role: "group", "aria-label": name });
    this.root.style.setProperty("--columns", columns);
    this.root.style.setProperty("--rows", rows);
    this.root.classList.toggle("headed", Boolean(columnName && rowName));
    this.heads = [];
    if (columnName && rowName) {
      this.root.append(h("span", { className: "head" }));
      this.heads = Array.from({ length: columns }, (_, c) => h("span", { className: "head" }, columnName(c)));
      this.root.append(...this.heads);
    }
    this.cells = Array.from({ length: rows }, (_, r) =>
      Array.from({ length: columns }, (_, c) => {
        const canvas = h("canvas", { "aria-hidden": "true" });
        const bar = h("span", { className: "bar" });
        const tag = h("span", { className: "tag" }, columnName ? columnName(c) : "");
        const button = h("button", { type: "button", tabIndex: -1 }, canvas, bar, tag);
        button.addEventListener("click", () => {
          pick(r, c);
          // On a narrow screen the large map is above: scroll to it.
          if (matchMedia("(max-width: 760px)").matches) document.getElementById("photo").scrollIntoView({ block: "center" });
        });
        button.addEventListener("keydown", (event) => this.move(event, r, c));
        return { button, canvas, bar };
      }),
    );
    this.cells.forEach((row, r) => {
      if (columnName && rowName) this.root.append(h("span", { className: "row" }, rowName(r)));
      this.root.append(...row.map((cell) => cell.button));
    });
    this.chosen = null;
  }

  move(event, r, c) {
    const place = this.order[r].indexOf(c);
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    let [row, column] = [r + step[0], place + step[1]];
    if (this.rows === 1 && step[0]) column = place + step[0] * this.across();
    if (this.rows === 1) row = 0;
    if (row < 0 || row >= this.rows || column < 0 || column >= this.columns) return;
    const next = this.order[row][column];
    this.pick(row, next);
    this.cells[row][next].button.focus();
  }

  /** Return the number of columns on screen, where a single row wraps. */
  across() {
    return getComputedStyle(this.root).gridTemplateColumns.split(" ").length;
  }

  choose(r, c) {
    if (this.chosen) {
      this.chosen.button.removeAttribute("aria-current");
      this.chosen.button.tabIndex = -1;
    }
    this.chosen = r === null ? null : this.cells[r][c];
    if (this.chosen) this.chosen.button.setAttribute("aria-current", "true");
    (this.chosen ?? this.cells[0][0]).button.tabIndex = 0;
  }

  draw(r, c, map) {
    paintMap(this.cells[r][c].canvas, map);
  }

  /** Set the bar below a map, 0 to 1, and its text for screen readers. */
  mark(r, c, fraction, text) {
    const { button, bar } = this.cells[r][c];
    bar.hidden = fraction === null;
    if (fraction !== null) bar.style.setProperty("--fraction", fraction.toFixed(3));
    button.setAttribute("aria-label", text);
    button.title = text;
  }

  sort(order) {
    this.order = order ?? Array.from({ length: this.rows }, () => Array.from({ length: this.columns }, (_, c) => c));
    this.root.classList.toggle("sorted", Boolean(order));
    this.order.forEach((columns, r) =>
      columns.forEach((c, place) => this.cells[r][c].button.style.setProperty("order", r * (this.columns + 1) + place + 1)),
    );
    this.root.querySelectorAll(".row").forEach((label, r) => label.style.setProperty("order", r * (this.columns + 1)));
  }
}

/** Return a row with a name, a bar of 0 to 1 and a value. */
function barRow({ name, fraction, value, colour, pick, picked }) {
  const fill = h("span", { className: "fill", style: { "--fraction": fraction.toFixed(4), "--colour": colour } });
  const button = h(
    "button",
    { type: "button", className: "bar-row", title: name, "aria-pressed": String(Boolean(picked)) },
    h("span", { className: "name" }, name),
    h("span", { className: "track", "aria-hidden": "true" }, fill),
    h("span", { className: "value" }, value),
  );
  button.addEventListener("click", pick);
  return button;
}

/** Write the description of a view: what it shows, its equation with the current numbers, its limits. */
function writeNote(element, { what, equation, live, not }) {
  const lines = (named) => Object.entries(named).filter(([, text]) => text).map(([className, text]) => h("p", { className }, text));
  element.replaceChildren(
    h("div", {}, ...lines({ what, equation })),
    h("div", {}, ...lines({ live }), h("p", { className: "not" }, h("b", {}, "It does not show "), not)),
  );
}
