// FitExplorer: two small networks that are trained on a curve while it is dragged, one with a fixed activation and one with a learned one.
const HANDLES = [-0.9, -0.6, -0.3, 0, 0.3, 0.6, 0.9], APART = 0.3, STARTS = 6, EARLY = 40, DECAY = 1e-4, STEPS = 400, FRAME = 12;
const MOST = { units: 12, learned_units: 4 };
const SHAPES = { bump: ["a bump", (x) => Math.exp(-8 * x * x)], corner: ["|x|", Math.abs], wave: ["sin 8x", (x) => Math.sin(8 * x)] };
const FIXED = ["gelu", "relu", "tanh"];

// ---- the two networks y = c + sum v_h s(w_h x + t_h): their parameters are one list [c, w_1, t_1, v_1, w_2, ...], then a_0 .. a_5, b_1 .. b_4 if learned
const POINTS = Float64Array.from({ length: 101 }, (_, i) => -1 + i / 50);

// Value at x and, into `row`, the derivatives by all parameters. `shape`: { units, name } or { units, degrees: [m, n] }.
function evaluate(p, x, { units, name, degrees }, row) {
  const from = 1 + 3 * units, [m, n] = degrees ?? [], a = degrees && p.slice(from, from + m + 1), b = degrees && p.slice(from + m + 1);
  let y = p[0];
  if (row) { row.fill(0); row[0] = 1; }
  for (let h = 0; h < units; h++) {
    const [w, t, v] = [p[3 * h + 1], p[3 * h + 2], p[3 * h + 3]], u = w * x + t, value = name ? TARGETS[name](u) : rational(u, a, b);
    y += v * value;
    if (!row) continue;
    const steep = v * (name ? SLOPES_OF[name](u) : derivative(u, a, b));
    row[3 * h + 1] = steep * x;
    row[3 * h + 2] = steep;
    row[3 * h + 3] = value;
    if (name) continue;
    const Q = DENOMINATORS.A(u, b);
    for (let i = 0; i <= m; i++) row[from + i] += v * u ** i / Q;
    for (let j = 1; j <= n; j++) row[from + m + j] -= v * value / Q * Math.abs(u) ** j * (b[j - 1] < 0 ? -1 : 1);
  }
  return y;
}

// Solves the symmetric positive definite system by Cholesky; null where it is not.
function solved(A, right) {
  const n = right.length, L = A.map((row) => Float64Array.from(row)), z = Float64Array.from(right);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) {
      let sum = L[i][j];
      for (let k = 0; k < j; k++) sum -= L[i][k] * L[j][k];
      if (i === j && !(sum > 0)) return null;
      L[i][j] = i === j ? Math.sqrt(sum) : sum / L[j][j];
    }
  }
  for (let i = 0; i < n; i++) { for (let k = 0; k < i; k++) z[i] -= L[i][k] * z[k]; z[i] /= L[i][i]; }
  for (let i = n - 1; i >= 0; i--) { for (let k = i + 1; k < n; k++) z[i] -= L[k][i] * z[k]; z[i] /= L[i][i]; }
  return z;
}

// Training by Levenberg-Marquardt: each step solves a damped least-squares problem, and is taken if the loss falls. The loss is the squared error with a
// little weight decay, without which the learned function can have spikes between the points.
class Training {
  constructor(shape, parameters) { Object.assign(this, { shape, parameters, damping: 1e-2, left: 0 }); }

  aim(targets, steps) { this.targets = targets; this.left = steps; this.damping = 1e-2; this.loss = this.lossOf(this.parameters); }
  squaredError(p) { return POINTS.reduce((sum, x, k) => sum + (evaluate(p, x, this.shape) - this.targets[k]) ** 2, 0); }
  lossOf(p) { return this.squaredError(p) + DECAY * p.reduce((sum, value) => sum + value * value, 0); }

  step() {
    const size = this.parameters.length, A = Array.from({ length: size }, () => new Float64Array(size)), right = new Float64Array(size), row = new Float64Array(size);
    POINTS.forEach((x, k) => {
      const error = evaluate(this.parameters, x, this.shape, row) - this.targets[k];
      for (let i = 0; i < size; i++) {
        if (row[i] === 0) continue;
        right[i] -= row[i] * error;
        for (let j = 0; j <= i; j++) A[i][j] += row[i] * row[j];
      }
    });
    this.parameters.forEach((value, i) => { right[i] -= DECAY * value; A[i][i] += DECAY; });
    this.left -= 1;
    for (let tries = 0; tries < 10; tries++) {
      const damped = A.map((line, i) => line.map((value, j) => (i === j ? value * (1 + this.damping) + 1e-9 : value)));
      const change = solved(damped, right), next = change && this.parameters.map((value, i) => value + change[i]);
      const loss = next ? this.lossOf(next) : Infinity;
      if (loss < this.loss) {
        if (this.loss - loss < 1e-7 * this.loss) this.left = 0;
        Object.assign(this, { parameters: next, loss, damping: Math.max(1e-9, this.damping / 4) });
        return;
      }
      this.damping *= 4;
    }
    this.left = 0;                                                  // no step makes it smaller
  }
}

// Several trainings at once, one for each start; after a few steps only the best of them goes on.
class Contest {
  constructor(shape, starts, targets) {
    Object.assign(this, { shape, targets, racers: starts.map((parameters) => new Training(shape, parameters)) });
    this.racers.forEach((racer) => racer.aim(targets, starts.length > 1 ? EARLY : STEPS));
  }

  get best() { return this.racers.reduce((best, racer) => (racer.loss < best.loss ? racer : best)); }
  get runs() { return this.racers.length > 1 || this.best.left > 0; }

  step() {
    const next = this.racers.find(({ left }) => left > 0);
    if (next) return next.step();
    this.racers = [this.best];
    this.best.aim(this.targets, STEPS);
  }
}

// The parameters of a hidden unit to start from: [w, t, v].
function newUnit(seed, h) {
  const normal = normals(1000 * seed + h), uniform = uniforms(1000 * seed + 500 + h);
  return [2 * normal(), 4 * uniform() - 2, normal()];
}

// ---- the figure

function draw({ model, el }) {
  const [[, ...gelu]] = model.get("presets"), degrees = [gelu[0].length - 1, gelu[1].length], KEYS = ["target", "offsets", "activation", "units", "learned_units"];
  const first = Object.fromEntries(KEYS.map((key) => [key, structuredClone(model.get(key))])), still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let seed = 0, trainings = {}, quiet = true, frame = null;
  const put = (key, value) => { model.set(key, value); model.save_changes(); };

  // each handle lifts the curve around its place, by a smooth hill that ends at its neighbours
  const hill = (x, place) => (Math.abs(x - place) < APART ? (1 + Math.cos(Math.PI * (x - place) / APART)) / 2 : 0);
  const target = (x) => SHAPES[model.get("target")][1](x) + model.get("offsets").reduce((sum, offset, i) => sum + offset * hill(x, HANDLES[i]), 0);

  const top = new Plot({ x: [-1, 1], y: [-1.5, 1.5], height: 270, label: "The curve with seven handles, and the two networks that follow it" });
  const low = new Plot({ x: [-1, 1], y: [-1.5, 1.5], height: 170, label: "What each hidden unit adds" });
  HANDLES.forEach((place, i) => top.handle({ name: `${i + 1}`, style: "ink", step: 0.05, where: () => [place, target(place)], says: () => `${digits(target(place), 3)} at x = ${place}`,
    move: (_, y) => put("offsets", model.get("offsets").map((old, k) => (k === i ? Math.min(3, Math.max(-3, old + y - target(place))) : old))) }));

  // ---- training, a few steps in every frame

  const fresh = (start, units, rest) => [0, ...Array.from({ length: units }, (_, h) => newUnit(start, h)).flat(), ...rest];
  // more units are added with v = 0, so that the curve does not jump
  function resized(start, parameters, units, had) {
    const kept = parameters.slice(0, 1 + 3 * Math.min(units, had)), rest = parameters.slice(1 + 3 * had);
    for (let h = had; h < units; h++) kept.push(...newUnit(start, h).slice(0, 2), 0);
    return [...kept, ...rest];
  }
  function prepare(key, shape, rest) {
    const old = trainings[key], goesOn = old && old.shape.name === shape.name, had = old?.shape.units, p = old?.best.parameters;
    const starts = Array.from({ length: goesOn && shape.units <= had ? 1 : STARTS }, (_, i) => STARTS * seed + i);
    const parameters = starts.map((start) => (goesOn ? resized(start, p, shape.units, had) : fresh(start, shape.units, rest)));
    trainings[key] = new Contest(shape, parameters, Float64Array.from(POINTS, target));
  }
  function train() {
    prepare("fixed", { units: model.get("units"), name: model.get("activation") }, []);
    prepare("learned", { units: model.get("learned_units"), degrees }, gelu.flat());
    table.setAttribute("aria-busy", true);
    frame ??= requestAnimationFrame(steps);
  }
  function steps() {
    const until = performance.now() + FRAME, busy = () => Object.values(trainings).filter(({ runs }) => runs);
    while (busy().length && performance.now() < until) busy().forEach((contest) => contest.step());
    frame = busy().length ? requestAnimationFrame(steps) : null;
    if (frame === null) { quiet = false; table.setAttribute("aria-busy", false); }
    if (!(quiet || still) || frame === null) redraw();
  }

  // ---- what is shown

  const SIDES = [["fixed", "units", "orange"], ["learned", "learned_units", "blue"]];
  const rows = SIDES.map(([side, key, style]) => {
    const name = element("span", {}), units = element("input", { type: "range", min: 1, max: MOST[key], "aria-label": `units of the ${side} one`, oninput: () => put(key, units.valueAsNumber) });
    const outputs = ["units", "parameters", "error"].map((what) => element("output", { "data-key": `${what} ${side}` }));
    const cells = outputs.map((output, i) => element("td", {}, i ? output : element("label", { class: "field" }, units, output)));
    return { side, key, name, units, outputs, node: element("tr", {}, element("th", { scope: "row" }, element("span", { class: `swatch ${style}`, "aria-hidden": "true" }), " ", name), ...cells) };
  });
  const table = element("table", { class: "numbers" }, element("thead", {}, element("tr", {}, ...["activation", "hidden units", "parameters", "error"].map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...rows.map(({ node }) => node)));
  const shapes = element("select", { "aria-label": "curve", onchange: () => { model.set("offsets", HANDLES.map(() => 0)); put("target", shapes.value); } },
    ...Object.entries(SHAPES).map(([key, [name]]) => element("option", { value: key }, name)));
  const choice = element("select", { "aria-label": "fixed activation", onchange: () => put("activation", choice.value) }, ...FIXED.map((key) => element("option", { value: key }, LABELS[key])));

  const show = (output, value, text) => { output.value = text; output.dataset.value = value; };
  const redraw = once(() => {
    const values = Float64Array.from(POINTS, target), middle = values.reduce((sum, y) => sum + y, 0) / values.length;
    const spread = Math.sqrt(values.reduce((sum, y) => sum + (y - middle) ** 2, 0) / values.length);
    top.curve("target", "ink wide", target);
    for (const [k, { side, key, name, units, outputs }] of rows.entries()) {
      const { best } = trainings[side], { parameters, shape } = best, style = SIDES[k][2];
      top.curve(side, style, quiet ? null : (x) => evaluate(parameters, x, shape));
      for (let h = 0; h < MOST[key]; h++) low.curve(`${side} ${h}`, `${style} thin`, !quiet && h < shape.units && added(parameters, shape, h));
      const error = Math.sqrt(best.squaredError(parameters) / values.length) / spread;
      units.value = shape.units;
      name.textContent = shape.name ? LABELS[shape.name] : "learned";
      show(outputs[0], shape.units, shape.units);
      show(outputs[1], JSON.stringify(parameters), parameters.length);
      show(outputs[2], error, quiet ? "" : error < 1e-3 ? "below 0.001" : error.toFixed(3));
    }
    top.place();
    shapes.value = model.get("target");
    choice.value = model.get("activation");
  });

  // What unit h adds to the network, without its mean, which the bias makes up for.
  function added(parameters, shape, h) {
    const alone = parameters.map((value, i) => (i > 0 && i <= 3 * shape.units && Math.floor((i - 1) / 3) !== h ? 0 : i ? value : 0));
    const values = [...POINTS].map((x) => evaluate(alone, x, shape)), middle = values.reduce((sum, y) => sum + y, 0) / values.length;
    return (x) => evaluate(alone, x, shape) - middle;
  }

  const restart = () => { trainings = {}; train(); };
  const reset = () => { seed = 0; for (const key of KEYS) put(key, structuredClone(first[key])); restart(); };
  const clear = mount(el, "Explorer of a fixed and a learned activation", [top, low], [
    element("div", { class: "strip controls" }, element("label", { class: "field" }, "curve", shapes), element("label", { class: "field" }, "fixed activation", choice),
      button("other starting weights", () => { seed += 1; restart(); }), button("reset", reset, { title: "key r" })),
    top.node, element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "the two networks" }, table),
    element("div", { class: "title" }, "what each hidden unit adds, without its mean"), low.node,
  ], () => { if (trainings.fixed) redraw(); });
  const key = (event) => { if (event.key === "r" && !["INPUT", "SELECT"].includes(event.target.tagName)) reset(); };
  const changes = KEYS.map((name) => `change:${name}`).join(" ");
  el.addEventListener("keydown", key);
  model.on(changes, train);
  train();
  return () => { cancelAnimationFrame(frame); clear(); el.removeEventListener("keydown", key); model.off(changes, train); };
}

const isCount = (most) => (value) => Number.isInteger(value) && value >= 1 && value <= most;
const render = drawn({
  target: (name) => Object.hasOwn(SHAPES, name), offsets: (offsets) => nested(offsets, HANDLES.length), activation: (name) => FIXED.includes(name),
  units: isCount(MOST.units), learned_units: isCount(MOST.learned_units), presets: (presets) => presets.length === 1 && ALLOWED.presets(presets),
}, draw);
export default { render };
