// What the live figures share: elements, axes, curves, handles that can be dragged or moved with the arrow keys, number fields.
const SVG = "http://www.w3.org/2000/svg";
let identifiers = 0;

function element(tag, attributes = {}, ...children) {
  const node = ["svg", "g", "path", "line", "circle", "text", "rect", "clipPath", "defs"].includes(tag)
    ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

// Whether a value is lists within lists of these sizes, with finite numbers in them. A size of null: any.
function nested(value, ...sizes) {
  if (!sizes.length) return Number.isFinite(value);
  const [size, ...inner] = sizes;
  return Array.isArray(value) && (size === null || value.length === size) && value.every((entry) => nested(entry, ...inner));
}
const isInterval = (value) => nested(value, 2) && value[0] < value[1];

// The figure's model, whose `on` and `off` take several events with spaces between them. Jupyter's model does; marimo's takes one event only.
function withManyEvents(model) {
  const one = (method) => (names, listener) => { for (const name of names.split(" ")) model[method](name, listener); };
  return { get: (key) => model.get(key), set: (key, value) => model.set(key, value), save_changes: () => model.save_changes(), on: one("on"), off: one("off") };
}

// What a module exports as `render`: draws the figure or, where its state is damaged, says so in its place. `allowed` tests each entry of the state.
function drawn(allowed, draw) {
  const isRight = (key, model) => { try { return allowed[key](model.get(key), model); } catch { return false; } };
  return ({ model, el }) => {
    const wrong = Object.keys(allowed).filter((key) => !isRight(key, model));
    if (!wrong.length) return draw({ model: withManyEvents(model), el });
    el.replaceChildren(element("p", { class: "katlib-live", role: "note" },
      `This live figure cannot be drawn, because what is stored of it is damaged (${wrong.join(", ")}). Running its notebook again draws it.`));
  };
}

// Calls `draw` once a frame at most, however often it is asked to.
function once(draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; draw(); });
  };
}

// A number as text with so many significant digits, and a true minus sign.
function digits(value, count = 4) {
  if (!Number.isFinite(value)) return value > 0 ? "∞" : value < 0 ? "−∞" : "undefined";
  const plain = Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(count - 1) : String(+value.toPrecision(count));
  return plain.replace("-", "−");
}

// Axes in an SVG as wide as its place. Ranges stay as they are while a handle moves, so that nothing jumps.
class Plot {
  constructor({ x, y, height, label, xlabel = "x", margin = 30, xtick = digits, ytick = digits }) {
    Object.assign(this, { x, y, height, xlabel, margin, xtick, ytick, width: 640, handles: [], curves: new Map(), areas: new Map() });
    this.clip = `katlib-clip-${identifiers++}`;
    this.grid = element("g", { "aria-hidden": "true" });
    this.body = element("g", { "clip-path": `url(#${this.clip})`, "aria-hidden": "true" });
    this.names = element("g", { "aria-hidden": "true" });
    this.knobs = element("g");
    this.frame = element("rect", {});
    this.node = element("svg", { role: "group", "aria-label": label, height },
      element("defs", {}, element("clipPath", { id: this.clip }, this.frame)), this.grid, this.body, this.names, this.knobs);
  }

  get inner() { return { left: 34, right: this.width - this.margin, top: 8, bottom: this.height - 26 }; }
  px(x) { const { left, right } = this.inner; return left + (x - this.x[0]) / (this.x[1] - this.x[0]) * (right - left); }
  py(y) { const { top, bottom } = this.inner; return bottom - (y - this.y[0]) / (this.y[1] - this.y[0]) * (bottom - top); }

  // The point of a pointer event, in the units of the axes.
  at(event) {
    const box = this.node.getBoundingClientRect(), { left, right, top, bottom } = this.inner;
    return [this.x[0] + (event.clientX - box.left - left) / (right - left) * (this.x[1] - this.x[0]),
      this.y[0] + (bottom - event.clientY + box.top) / (bottom - top) * (this.y[1] - this.y[0])];
  }

  layout(width) {
    this.width = width;
    this.node.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    this.node.setAttribute("width", width);
    const { left, right, top, bottom } = this.inner;
    for (const [key, value] of Object.entries({ x: left, y: top, width: right - left, height: bottom - top })) this.frame.setAttribute(key, value);
    this.grid.replaceChildren();
    const line = (x1, y1, x2, y2, zero) => this.grid.append(element("line", { x1, y1, x2, y2, class: zero ? "zero" : "grid" }));
    const text = (x, y, anchor, words) => this.grid.append(element("text", { x, y, "text-anchor": anchor, class: "tick" }, words));
    for (const t of ticks(this.x, width < 450 ? 5 : 9)) {
      line(this.px(t), top, this.px(t), bottom, t === 0);
      text(this.px(t), bottom + 15, "middle", this.xtick(t));
    }
    for (const t of ticks(this.y, 7)) {
      line(left, this.py(t), right, this.py(t), t === 0);
      text(left - 5, this.py(t) + 4, "end", this.ytick(t));
    }
    text(right + 8, bottom + 15, "start", this.xlabel);
  }

  path(name, style, fill) {
    if (!this.curves.has(name)) {
      this.curves.set(name, element("path", { class: fill ? `area ${style}` : `curve ${style}` }));
      this.body.append(this.curves.get(name));
    }
    return this.curves.get(name);
  }

  // Draws y = f(x), with a gap where f is not finite or crosses a pole; `f` null hides it. `text`: written at the right end.
  curve(name, style, f, text = "") {
    const path = this.path(name, style), reach = 20 * (this.y[1] - this.y[0]), middle = (this.y[0] + this.y[1]) / 2;
    path.nextName?.remove();
    if (!f) return path.setAttribute("d", "");
    const points = Math.max(240, Math.round(this.width)), pieces = [];
    let before = null;
    for (let i = 0; i <= points; i++) {
      const x = this.x[0] + (this.x[1] - this.x[0]) * i / points, y = f(x);
      const leap = before !== null && Math.abs(y - before) > reach && Math.sign(y - middle) !== Math.sign(before - middle);
      if (Number.isFinite(y)) {
        const shown = Math.min(middle + reach, Math.max(middle - reach, y));
        pieces.push(`${before === null || leap ? "M" : "L"}${this.px(x).toFixed(2)} ${this.py(shown).toFixed(2)}`);
      }
      before = Number.isFinite(y) ? y : null;
    }
    path.setAttribute("d", pieces.join(""));
    if (text && before !== null && before >= this.y[0] && before <= this.y[1]) {
      let y = this.py(before) + 4;
      const near = () => [...this.names.children].some((other) => Math.abs(y - other.getAttribute("y")) < 14);
      while (near()) y -= 14;                                       // two curves that end together: one name above the other
      path.nextName = element("text", { x: this.inner.right + 4, y, class: `name ${style}` }, text);
      this.names.append(path.nextName);
    }
  }

  // Joins points [x, y] by straight lines; a point that is not finite leaves a gap.
  trace(name, style, points) {
    const finite = ([x, y]) => Number.isFinite(x) && Number.isFinite(y);
    this.path(name, style).setAttribute("d", points.map((point, i) => (finite(point)
      ? `${i && finite(points[i - 1]) ? "L" : "M"}${this.px(point[0]).toFixed(2)} ${this.py(point[1]).toFixed(2)}` : "")).join(""));
  }

  // Fills between 0 and f(x) on [from, to].
  area(name, style, f, from = this.x[0], to = this.x[1]) {
    const path = this.path(name, style, true), steps = 160;
    if (!f) return path.setAttribute("d", "");
    const points = Array.from({ length: steps + 1 }, (_, i) => from + (to - from) * i / steps);
    path.setAttribute("d", `M${this.px(from)} ${this.py(0)}` + points.map((x) => `L${this.px(x).toFixed(2)} ${this.py(f(x)).toFixed(2)}`).join("")
      + `L${this.px(to)} ${this.py(0)}Z`);
  }

  verticals(name, style, xs) {
    const { top, bottom } = this.inner;
    this.path(name, style).setAttribute("d", xs.map((x) => `M${this.px(x).toFixed(2)} ${top}V${bottom}`).join(""));
  }

  // A handle: `where()` says its place, `move(x, y)` takes a new one, `step` is what an arrow key moves it by, one number or one for x and one for y.
  // `along`: "x", "y" or "both".
  handle({ name, says, style, where, move, step, along = "y", shape = "circle" }) {
    const target = element("circle", { r: 18, class: "reach" });
    const dot = element(shape, shape === "circle" ? { r: 7, class: "dot" } : { x: -6, y: -6, width: 12, height: 12, class: "dot" });
    const knob = element("g", { class: `knob ${style}`, tabindex: 0, role: "slider", "aria-label": name, "data-name": name,
      "aria-orientation": along === "y" ? "vertical" : "horizontal" }, target, dot,
    element("text", { class: `name ${style}`, x: 9, y: -8 }, name));
    let grabbed = null;
    knob.addEventListener("pointerdown", (event) => {
      const [x, y] = this.at(event), [x0, y0] = where();
      grabbed = [x0 - x, y0 - y];                                   // moves with the pointer, from where it was
      knob.setPointerCapture(event.pointerId);
      knob.focus({ preventScroll: true });
      event.preventDefault();
    });
    knob.addEventListener("pointermove", (event) => {
      if (!grabbed) return;
      const [x, y] = this.at(event);
      move(x + grabbed[0], y + grabbed[1]);
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) knob.addEventListener(end, () => { grabbed = null; });
    knob.addEventListener("keydown", (event) => {
      const sign = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1 }[event.key];
      if (!sign) return;
      const [x, y] = where(), by = sign * (event.shiftKey ? 10 : 1), [dx, dy] = Array.isArray(step) ? step : [step, step];
      const isSideways = along === "x" || (along === "both" && /Left|Right/.test(event.key));
      if (isSideways) move(x + by * dx, y); else move(x, y + by * dy);
      event.preventDefault();
    });
    this.handles.push({ knob, where, says, along });
    this.knobs.append(knob);
  }

  place() {
    for (const { knob, where, says, along } of this.handles) {
      const [x, y] = where(), inside = Math.min(this.y[1], Math.max(this.y[0], y));
      knob.setAttribute("transform", `translate(${this.px(x).toFixed(2)} ${this.py(inside).toFixed(2)})`);
      knob.classList.toggle("outside", inside !== y);
      const range = along === "x" ? this.x : [Math.min(this.y[0], y), Math.max(this.y[1], y)];
      for (const [key, value] of Object.entries({ valuemin: range[0], valuemax: range[1], valuenow: along === "x" ? x : y, valuetext: says() }))
        knob.setAttribute(`aria-${key}`, typeof value === "number" ? value.toFixed(9) : value);        // no exponents: screen readers do not know them
    }
  }
}

function ticks([lo, hi], most) {
  const raw = (hi - lo) / most, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= raw * 0.999);
  const found = [];
  for (let k = Math.ceil(lo / step - 1e-9); k * step <= hi + 1e-9; k++) found.push(+(k * step).toPrecision(6));
  return found;
}

// The plots and their controls under each other, in a box that redraws itself when its width changes. Returns a function that clears up.
function mount(el, name, plots, rows, redraw) {
  const box = element("div", { class: "katlib-live", role: "group", "aria-label": name }, ...rows);
  el.replaceChildren(box);
  const fit = () => {
    const width = Math.max(280, Math.floor(box.clientWidth));
    plots.forEach((plot) => plot.layout(width));
    redraw();
  };
  const observer = new ResizeObserver(once(fit));
  observer.observe(box);
  fit();
  return () => observer.disconnect();
}

function button(text, onclick, attributes = {}) { return element("button", { type: "button", onclick, ...attributes }, text); }

// A number that one can type or step; `set` gets the new one.
function field(label, set, step = 0.01) {
  const input = element("input", { type: "number", step, "aria-label": label, oninput: () => Number.isFinite(input.valueAsNumber) && set(input.valueAsNumber) });
  const node = element("label", { class: "field" }, label, input);
  return { node, show: (value) => {
    input.dataset.value = value;
    if (document.activeElement !== input || input.valueAsNumber !== value) input.value = +value.toFixed(7);
  } };
}

// A named result: text to read, and the exact number in data-value.
function readout(label, key) {
  const output = element("output", { "data-key": key });
  return { node: element("span", { class: "readout" }, `${label} `, output),
    show: (value, text) => { output.value = text ?? digits(value); output.dataset.value = value; } };
}
