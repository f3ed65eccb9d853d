// GroupExplorer: a layer from 8 channels to 3 outputs, which of its channels share a function, and what the layer then costs.
const CHANNELS = 8, OUTPUTS = 3, ROW = 38, HEIGHT = CHANNELS * ROW + 6, LEFT = 64, BOX = [46, 30], SMALL = [32, 18];
const DEGREES = [5, 4], OPERATIONS = 2 * DEGREES[0] + 2 * DEGREES[1] + 3;       // of F for one number, as the paper counts them
const SHARINGS = ["edge", "channel", "group"];
const PRESETS = [["each edge", "edge", [0, 1, 2, 3, 4, 5, 6, 7]], ["each channel", "channel", [0, 1, 2, 3, 4, 5, 6, 7]], ["4 groups", "group", [0, 0, 1, 1, 2, 2, 3, 3]],
  ["2 groups", "group", [0, 0, 0, 0, 1, 1, 1, 1]], ["1 group", "group", [0, 0, 0, 0, 0, 0, 0, 0]]];
const ROWS = { functions: "learned functions", coefficients: "their coefficients", weights: "weights", operations: "operations per token", stretches: "stretches of memory per token" };

// Shapes and colours that tell the functions F1 .. F8 apart; no count depends on them.
const SHAPES = [(x) => 0.8 * x / (1 + Math.exp(-2 * x)) - 0.7, (x) => Math.sin(1.6 * x), (x) => 2 * Math.exp(-x * x) - 1, (x) => Math.tanh(x), (x) => Math.abs(x) / 1.4 - 1,
  (x) => 0.7 - 0.8 * x / (1 + Math.exp(-2 * x)), (x) => 1 - 2 * Math.exp(-x * x / 2), (x) => -Math.tanh(x)];
const STYLES = ["blue", "orange", "green", "pink", "ink", "blue dash", "orange dash", "green dash"];

// What a layer from `inputs` to `outputs` needs, if so many functions are in it; `evaluated`: how often one is computed for a token.
function layerCost(inputs, outputs, functions, evaluated, sharedNumerator) {
  const numerators = sharedNumerator ? 1 : functions, weights = inputs * outputs;
  return { functions, coefficients: numerators * (DEGREES[0] + 1) + functions * DEGREES[1], weights, operations: OPERATIONS * evaluated + 2 * weights };
}

// The unbroken stretches of neighbours with one function, as a token's channels lie in memory.
const stretches = (functions) => functions.filter((f, i) => f !== functions[i - 1]).length;

function sharingCost(inputs, outputs, sharing, functions, sharedNumerator) {
  const count = { edge: inputs * outputs, channel: inputs, group: new Set(functions).size }[sharing];
  const cost = layerCost(inputs, outputs, count, sharing === "edge" ? inputs * outputs : inputs, sharedNumerator);
  return { ...cost, stretches: { edge: NaN, channel: inputs, group: stretches(functions) }[sharing] };
}

function draw({ model, el }) {
  const [inputs, outputs] = model.get("layer"), state = () => ["sharing", "functions", "shared_numerator"].map((key) => model.get(key));
  const first = { sharing: model.get("sharing"), functions: [...model.get("functions")], shared_numerator: model.get("shared_numerator") };
  const put = (values) => { for (const [key, value] of Object.entries(values)) model.set(key, value); model.save_changes(); };
  const assign = (channel, f) => put({ sharing: "group", functions: model.get("functions").map((old, i) => (i === channel ? f : old)) });
  let active = null;                                                // the channel whose function stands out

  const wires = element("g", { "aria-hidden": "true" }), plates = element("g", { "aria-hidden": "true" }), knobs = element("g");
  const svg = element("svg", { role: "group", "aria-label": "A layer from 8 channels to 3 outputs, with a box for the function of each channel", height: HEIGHT }, wires, plates, knobs);
  const rowY = (i) => 5 + ROW * (i + 0.5), outputY = (o) => HEIGHT * (o + 1) / (OUTPUTS + 1);
  const network = { width: 640, layout: (width) => { network.width = width; svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`); svg.setAttribute("width", width); } };

  // A box of this size around 0 with the curve of a function in it.
  function box(shape, [w, h], style) {
    const points = Array.from({ length: 25 }, (_, k) => k / 12 - 1).map((t) => `${(0.42 * w * t).toFixed(1)} ${(-0.36 * h * Math.max(-1, Math.min(1, shape(2.4 * t)))).toFixed(1)}`);
    return element("g", {}, element("rect", { class: `plate ${style}`, x: -w / 2, y: -h / 2, width: w, height: h, rx: 3 }), element("path", { class: `curve thin ${style}`, d: `M${points.join("L")}` }));
  }
  const line = (x1, y1, x2, y2, style) => wires.append(element("line", { x1, y1, x2, y2, class: `wire ${style}` }));
  const words = (x, y, text, anchor = "start") => wires.append(element("text", { x, y, class: "tick", "text-anchor": anchor }, text));

  const channels = Array.from({ length: CHANNELS }, (_, i) => {
    const knob = element("g", { class: "knob", tabindex: 0, role: "slider", "aria-label": `function of channel ${i + 1}`, "data-name": `channel ${i + 1}`, "aria-orientation": "vertical",
      "aria-valuemin": 1, "aria-valuemax": CHANNELS });
    let before = null;                                              // who had which function when the box was grabbed
    const rowUnder = (event) => Math.min(CHANNELS - 1, Math.max(0, Math.floor((event.clientY - svg.getBoundingClientRect().top - 5) / ROW)));
    knob.addEventListener("pointerdown", (event) => {
      before = [...model.get("functions")];
      knob.setPointerCapture(event.pointerId);
      knob.focus({ preventScroll: true });
      event.preventDefault();
    });
    knob.addEventListener("pointermove", (event) => {
      if (before && before[rowUnder(event)] !== model.get("functions")[i]) assign(i, before[rowUnder(event)]);
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) knob.addEventListener(end, () => { before = null; });
    knob.addEventListener("keydown", (event) => {
      const by = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1 }[event.key];
      if (!by) return;
      assign(i, Math.min(CHANNELS - 1, Math.max(0, model.get("functions")[i] + by)));
      event.preventDefault();
    });
    knob.addEventListener("focus", () => { active = i; redraw(); });
    knob.addEventListener("blur", () => { active = null; redraw(); });
    knobs.append(knob);
    return knob;
  });

  // No two edges have the same shape: from the ninth on, they are narrower and moved to the left.
  const shapeOfEdge = (k) => (x) => SHAPES[k % SHAPES.length]((1 + 0.3 * Math.floor(k / SHAPES.length)) * x + 0.7 * Math.floor(k / SHAPES.length));

  function drawChannel(i, [sharing, functions]) {
    const f = functions[i], y = rowY(i), end = network.width - 34, perEdge = sharing === "edge", from = perEdge ? 34 : LEFT + BOX[0];
    const chosen = active !== null && !perEdge && functions[active] === f, style = perEdge ? "ink" : STYLES[f];
    words(4, y + 4, `x${i + 1}`);
    line(26, y, from, y, style);
    for (let o = 0; o < OUTPUTS; o++) {
      const at = (t) => [from + (end - from) * t, y + (outputY(o) - y) * t];
      line(...at(0), ...at(1), `${style.replace(" dash", "")}${active !== null && !perEdge && !chosen ? " faint" : ""}`);
      wires.append(element("circle", { cx: at(0.68)[0], cy: at(0.68)[1], r: 2.5, class: "weight" }));
      if (!perEdge) continue;
      const own = box(shapeOfEdge(i * OUTPUTS + o), SMALL, "ink");
      own.setAttribute("transform", `translate(${at(0.15 + 0.14 * o).map((v) => v.toFixed(1)).join(" ")})`);
      plates.append(own);
    }
    channels[i].setAttribute("transform", `translate(${LEFT + BOX[0] / 2} ${y})`);
    channels[i].style.display = perEdge ? "none" : "";
    channels[i].replaceChildren(box(SHAPES[f], BOX, STYLES[f]), element("text", { x: 30 - LEFT - BOX[0] / 2, y: -6, class: `name ${STYLES[f]}` }, `F${f + 1}`));
    const others = functions.flatMap((g, k) => (g === f && k !== i ? [k + 1] : []));
    channels[i].setAttribute("aria-valuenow", f + 1);
    channels[i].setAttribute("aria-valuetext", `F${f + 1}, ${others.length ? `shared with channel ${others.join(", ")}` : "not shared"}`);
  }

  const sizes = [["drawn", CHANNELS, OUTPUTS], ["full", inputs, outputs]];
  const cells = Object.fromEntries(Object.keys(ROWS).map((key) => [key, sizes.map(([size]) => readout("", `${key} ${size}`))]));
  const table = element("table", { class: "numbers" }, element("thead", {}, element("tr", {}, ...["layer", ...sizes.map(([, i, o]) => `${i} → ${o}`)].map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...Object.entries(ROWS).map(([key, label]) => element("tr", {}, element("th", { scope: "row" }, label), ...cells[key].map(({ node }) => element("td", {}, node))))));
  const ratios = { parameters: readout(`${inputs} → ${outputs}, against a linear map: parameters ×`, "parameters ratio"), operations: readout("operations ×", "operations ratio") };

  const redraw = once(() => {
    const now = state(), [sharing, functions, sharedNumerator] = now;
    wires.replaceChildren();
    plates.replaceChildren();
    for (let i = 0; i < CHANNELS; i++) drawChannel(i, now);
    for (let i = 0; i < CHANNELS; i++) wires.append(element("circle", { cx: 26, cy: rowY(i), r: 4, class: "weight" }));
    for (let o = 0; o < OUTPUTS; o++) {
      wires.append(element("circle", { cx: network.width - 34, cy: outputY(o), r: 5, class: "weight" }));
      words(network.width - 24, outputY(o) + 4, `y${o + 1}`);
    }
    sizes.forEach(([, ins, outs], k) => {
      const cost = sharingCost(ins, outs, sharing, functions, sharedNumerator);
      for (const key of Object.keys(ROWS)) cells[key][k].show(cost[key], Number.isFinite(cost[key]) ? cost[key].toLocaleString("en-US") : "–");
    });
    const { coefficients, weights, operations } = sharingCost(inputs, outputs, sharing, functions, sharedNumerator);
    const larger = (coefficients + weights) / weights;
    ratios.parameters.show(larger, digits(larger, 5));
    ratios.operations.show(operations / (2 * weights));
    presets.forEach((node, k) => node.setAttribute("aria-pressed", PRESETS[k][1] === sharing && PRESETS[k][2].join() === functions.join()));
    one.checked = sharedNumerator;
    hint.textContent = { edge: "Every edge has a function of its own. Choose “each channel”, and its boxes can be dragged.", channel: "Drag a box onto another channel's to share its function.",
      group: `Drag a box onto another channel's to share its function. In groups, a drawn channel stands for ${inputs / CHANNELS} of the ${inputs}.` }[sharing] + " Black dots are weights.";
  });

  const hint = element("div", { class: "hint" });
  const row = (...children) => element("div", { class: "strip" }, ...children);
  const presets = PRESETS.map(([name, sharing, functions]) => button(name, () => put({ sharing, functions: [...functions] }), { "data-preset": name }));
  const one = element("input", { type: "checkbox", onchange: () => put({ shared_numerator: one.checked }) });
  const reset = () => put({ ...first, functions: [...first.functions] }), key = (event) => { if (event.key === "r") reset(); };
  const clear = mount(el, "Explorer of shared functions", [network], [
    element("div", { class: "strip controls" }, element("span", { class: "title" }, "a function for"), ...presets, button("reset", reset, { title: "key r" })),
    svg, row(element("label", { class: "choice" }, one, "one numerator for all, as in KAT")),
    element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "parameters and operations" }, table), row(...Object.values(ratios).map(({ node }) => node)),
    hint,
  ], () => redraw());
  el.addEventListener("keydown", key);
  model.on("change:sharing change:functions change:shared_numerator", redraw);
  return () => { clear(); el.removeEventListener("keydown", key); model.off("change:sharing change:functions change:shared_numerator", redraw); };
}

const render = drawn({
  sharing: (sharing) => SHARINGS.includes(sharing), functions: (list) => nested(list, CHANNELS) && list.every((f) => SHAPES[f] !== undefined),
  shared_numerator: (value) => typeof value === "boolean", layer: (layer) => nested(layer, 2) && layer.every((size) => size > 0 && Number.isInteger(size)),
}, draw);
export default { render };
