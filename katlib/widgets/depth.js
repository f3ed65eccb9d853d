// DepthExplorer: what layers y = W F(x) do to the strength of a signal and of its gradient, as a mean over all weights and in one stack of random ones.
const LAYERS = 32, INPUTS = 4, TOP = 3;

// a grid for means over z ~ N(0, 1); it is symmetric and leaves out 0, where ReLU has its kink
const Z = Array.from({ length: 200 }, (_, i) => (i - 99.5) / 10);
const TOTAL = Z.reduce((sum, z) => sum + Math.exp(-z * z / 2), 0), DENSITY = Z.map((z) => Math.exp(-z * z / 2) / TOTAL);
const mean = (f) => Z.reduce((sum, z, i) => sum + DENSITY[i] * f(z), 0);

const rms = (x) => Math.sqrt(x.reduce((sum, value) => sum + value * value, 0) / x.length);
const power = (k) => `10${String(k).replace("-", "⁻").replace(/\d/g, (d) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[d])}`;

// A stack of random matrices of std 1, layer by layer, and the inputs and output gradients of a few signals.
function drawStack(channels, seed) {
  const next = normals(seed), numbers = (count) => Float64Array.from({ length: count }, next);
  return { inputs: Array.from({ length: INPUTS }, () => numbers(channels)), ends: Array.from({ length: INPUTS }, () => numbers(channels)),
    weights: Array.from({ length: LAYERS }, () => numbers(channels * channels)) };
}

// The RMS of one signal after 0, 1, ... depth layers, and that of its gradient before as many; the gradient arrives with RMS 1.
function follow(stack, input, { name, std, depth, start, channels }) {
  const F = TARGETS[name], slopeOf = SLOPES_OF[name], signals = [stack.inputs[input].map((value) => value * Math.sqrt(start))];
  for (let layer = 0; layer < depth; layer++) {
    const active = signals[layer].map(F), W = stack.weights[layer];
    signals.push(active.map((_, o) => { let sum = 0; for (let i = 0; i < channels; i++) sum += W[o * channels + i] * active[i]; return std * sum; }));
  }
  const scale = rms(stack.ends[input]), gradients = [stack.ends[input].map((value) => value / scale)];
  for (let layer = depth - 1; layer >= 0; layer--) {
    const arrived = gradients[0], W = stack.weights[layer], sums = new Float64Array(channels);
    for (let o = 0; o < channels; o++) for (let i = 0; i < channels; i++) sums[i] += W[o * channels + i] * arrived[o];
    gradients.unshift(sums.map((sum, i) => std * sum * slopeOf(signals[layer][i])));
  }
  return [signals.map(rms), gradients.map(rms)];
}

function draw({ model, el }) {
  const state = () => ({ name: model.get("function"), std: model.get("std"), depth: model.get("depth"), start: model.get("start"), channels: model.get("channels") });
  const first = state(), { channels } = first;
  let seed = 0, stack = null;
  const put = (key, value) => { model.set(key, value); model.save_changes(); };
  const limited = (value, low, high) => Math.min(high, Math.max(low, value));
  const setStd = (std) => put("std", limited(std, 1e-3, 1));
  const setDepth = (depth) => put("depth", limited(Math.round(depth), 1, LAYERS));
  const setStart = (start) => put("start", limited(start, 0.01, TOP));

  // E[F(sqrt(q) z)^2], kept for the q of the curve, which depend on the function only
  let kept = new Map(), keptFor = "";
  const moment = (q, name) => mean((z) => TARGETS[name](Math.sqrt(q) * z) ** 2);
  const keptMoment = (q, name) => {
    if (keptFor !== name) { kept = new Map(); keptFor = name; }
    if (!kept.has(q)) kept.set(q, moment(q, name));
    return kept.get(q);
  };
  const fanIn = (std) => channels * std * std;
  const derived = (name) => Math.sqrt(1 / (channels * moment(1, name)));

  const top = new Plot({ x: [0, TOP], y: [0, TOP], height: 280, xlabel: "q", label: "The variance map m(q) and its cobweb, with handles for the std of the weights and the mean square q of the input" });
  const low = new Plot({ x: [0, LAYERS], y: [-4, 4], height: 240, xlabel: "layer", margin: 46, ytick: power, label: "RMS of the signal and of the gradient, layer by layer, with a handle for the depth" });
  top.handle({ name: "std", style: "blue", step: 0.02, where: () => [1, fanIn(state().std) * keptMoment(1, state().name)], says: () => `std = ${digits(state().std)}`,
    move: (_, y) => setStd(Math.sqrt(limited(y, 0, TOP) / (channels * keptMoment(1, state().name)))) });
  top.handle({ name: "q", style: "ink", shape: "rect", along: "x", step: 0.02, where: () => [state().start, 0], says: () => `mean square of the input ${digits(state().start)}`, move: setStart });
  low.handle({ name: "depth", style: "ink", shape: "rect", along: "x", step: 1, where: () => [state().depth, low.y[0]], says: () => `${state().depth} layers`, move: setDepth });

  const results = { map: readout("m(1) =", "map"), slope: readout("slope of m at 1:", "slope"), signal: readout("signal after the last layer: RMS", "signal"),
    gradient: readout("gradient before the first: RMS", "gradient"), derived: readout("derived std:", "derived") };
  const std = field("std of the weights", setStd, 0.01);
  const choice = element("select", { "aria-label": "function", onchange: () => put("function", choice.value) }, ...Object.keys(TARGETS).map((name) => element("option", { value: name }, LABELS[name])));

  // what all weights do in the mean: the mean squares of the signal, and of the gradient from the last layer back
  function means({ name, std, depth, start }) {
    const q = [start], g = [1];
    while (q.length <= depth) q.push(fanIn(std) * moment(q[q.length - 1], name));
    for (let layer = depth - 1; layer >= 0; layer--) g.unshift(g[0] * fanIn(std) * mean((z) => SLOPES_OF[name](Math.sqrt(q[layer]) * z) ** 2));
    return [q, g];
  }

  const redraw = once(() => {
    const now = state(), [q, g] = means(now), m = (x) => fanIn(now.std) * keptMoment(x, now.name);
    stack ??= drawStack(channels, seed);
    top.curve("diagonal", "ink thin dash", (x) => x);
    top.curve("map", "blue", m, "m(q)");
    top.trace("cobweb", "pink thin", [[q[0], 0], ...q.slice(1).flatMap((next, i) => [[q[i], next], [next, next]])]);
    for (let input = 0; input < INPUTS; input++) {
      const [signal, gradient] = follow(stack, input, now);
      low.trace(`signal ${input}`, "blue faint", signal.map((value, layer) => [layer, Math.log10(value)]));
      low.trace(`gradient ${input}`, "orange faint", gradient.map((value, layer) => [layer, Math.log10(value)]));
    }
    low.trace("signal", "blue", q.map((value, layer) => [layer, Math.log10(value) / 2]));
    low.trace("gradient", "orange dash", g.map((value, layer) => [layer, Math.log10(value) / 2]));
    for (const plot of [top, low]) plot.place();
    results.map.show(m(1));
    results.slope.show(fanIn(now.std) * mean((z) => TARGETS[now.name](z) * SLOPES_OF[now.name](z) * z));
    results.signal.show(Math.sqrt(q[now.depth]), digits(Math.sqrt(q[now.depth]), 3));
    results.gradient.show(Math.sqrt(g[0]), digits(Math.sqrt(g[0]), 3));
    results.derived.show(derived(now.name));
    std.show(now.std);
    choice.value = now.name;
  });

  const row = (...children) => element("div", { class: "strip" }, ...children), controls = (...children) => element("div", { class: "strip controls" }, ...children);
  const swatch = (style, text) => element("span", { class: "choice" }, element("span", { class: `swatch ${style}`, "aria-hidden": "true" }), text);
  const reset = () => { seed = 0; stack = null; for (const key of ["std", "depth", "start"]) model.set(key, first[key]); put("function", first.name); };
  const clear = mount(el, "Explorer of a signal's way through many layers", [top, low], [
    controls(element("label", { class: "field" }, "function", choice), std.node, button("derived std", () => setStd(derived(state().name))), button("reset", reset, { title: "key r" })),
    row(results.map.node, results.slope.node, results.derived.node), top.node,
    row(swatch("blue", "signal"), swatch("orange dash", "gradient"), element("span", { class: "hint" }, `RMS; thin: ${INPUTS} inputs, one stack of ${channels} channels`),
      button("other weights", () => { seed += 1; stack = null; redraw(); })),
    low.node, row(results.signal.node, results.gradient.node),
  ], redraw);
  const key = (event) => { if (event.key === "r" && !["INPUT", "SELECT"].includes(event.target.tagName)) reset(); };
  const changes = "change:function change:std change:depth change:start";
  el.addEventListener("keydown", key);
  model.on(changes, redraw);
  return () => { clear(); el.removeEventListener("keydown", key); model.off(changes, redraw); };
}

const within = (low, high) => (value) => Number.isFinite(value) && value >= low && value <= high;
const wholeWithin = (low, high) => (value) => Number.isInteger(value) && value >= low && value <= high;
const render = drawn({
  function: (name) => Object.hasOwn(TARGETS, name), std: within(1e-3, 1), depth: wholeWithin(1, LAYERS), start: within(0.01, TOP), channels: wholeWithin(8, 256),
}, draw);
export default { render };
