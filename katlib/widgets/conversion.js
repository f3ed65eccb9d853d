// ConversionExplorer: an MLP with GELU, and the same one with a fitted rational function in GELU's place, as degrees, interval and inputs change.
const REACHES = [2, 8], SPREADS = [0.25, 5], SPAN = 9;
const rms = (values) => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / values.length);
const times = (rows, matrix) => rows.map((row) => matrix.map((weights) => weights.reduce((sum, w, k) => sum + w * row[k], 0)));       // rows matrix^T

function draw({ model, el }) {
  const KEYS = ["degrees", "reach", "spread"], first = KEYS.map((key) => [key, model.get(key)]), fits = model.get("fits"), { inputs, fc1, fc2 } = model.get("mlp");
  const put = (pairs) => { for (const [key, value] of pairs) model.set(key, value); model.save_changes(); };
  const within = ([low, high], value) => Math.min(high, Math.max(low, value));
  const pair = () => fits[model.get("degrees").join()][model.get("reach") - REACHES[0]], F = (x) => rational(x, ...pair());
  const hidden = times(inputs, fc1), unit = rms(hidden.flat()), GELU = TARGETS.gelu;

  const top = new Plot({ x: [-SPAN, SPAN], y: [-2, 10.5], height: 250, margin: 54, label: "GELU, the rational function that was fitted to it, and how the hidden inputs are distributed" });
  const low = new Plot({ x: [-SPAN, SPAN], y: [-8, 1], height: 190, margin: 54, ytick: (t) => (t ? `1e${t}`.replace("-", "−") : "1"), label: "The absolute difference of the two, on a logarithmic axis" });
  top.handle({ name: "spread", style: "ink", shape: "rect", along: "x", step: 0.05, where: () => [model.get("spread"), top.y[0]], says: () => `deviation of the hidden inputs: ${digits(model.get("spread"), 3)}`,
    move: (x) => put([["spread", within(SPREADS, x)]]) });
  low.handle({ name: "interval", style: "green", shape: "rect", along: "x", step: 1, where: () => [model.get("reach"), low.y[0]], says: () => `fitted on −${model.get("reach")} to ${model.get("reach")}`,
    move: (x) => put([["reach", within(REACHES, Math.round(x))]]) });

  const out = Object.fromEntries(Object.entries({ error: "largest error on the interval:", outside: "hidden inputs outside of it:", change: "the MLP's output changes by" })
    .map(([key, label]) => [key, readout(label, key)]));

  // What the MLP returns for all inputs, with an activation between its two matrices.
  const outputs = (act, z) => times(z.map((row) => row.map(act)), fc2).flat();

  function shade(z) {                                               // a histogram of the hidden inputs, on the floor of the upper axes
    const bins = 72, counts = Array(bins).fill(0), place = (i) => -SPAN + 2 * SPAN * i / bins;
    for (const value of z) if (Math.abs(value) < SPAN) counts[Math.floor((value + SPAN) / (2 * SPAN) * bins)]++;
    const peak = Math.max(...counts, 1), y = (count) => top.py(top.y[0] + 2.4 * count / peak).toFixed(1);
    top.path("density", "", true).setAttribute("d", `M${top.px(-SPAN)} ${y(0)}${counts.map((count, i) => `V${y(count)}H${top.px(place(i + 1)).toFixed(1)}`).join("")}V${y(0)}Z`);
  }

  const redraw = once(() => {
    const [a, b] = pair(), reach = model.get("reach"), scale = model.get("spread") / unit, z = hidden.map((row) => row.map((value) => scale * value)), flat = z.flat();
    shade(flat);
    top.curve("GELU", "ink dash", GELU, "GELU");
    top.curve("F", "blue", F, "F");
    low.curve("error", "blue", (x) => Math.log10(Math.abs(rational(x, a, b) - GELU(x))));
    for (const plot of [top, low]) {
      plot.verticals("interval", "green thin dash", [-reach, reach]);
      plot.place();
    }
    const before = outputs(GELU, z), after = outputs(F, z), outside = flat.filter((value) => Math.abs(value) > reach).length / flat.length;
    const [error, where] = largestError(F, "gelu", -reach, reach), change = rms(after.map((y, i) => y - before[i])) / rms(before);
    out.error.show(error, `${digits(error, 3)} at x = ${digits(where, 3)}`);
    out.outside.show(outside, `${(100 * outside).toFixed(1)}%`);
    out.change.show(change, `${digits(100 * change, 3)}%`);
    choices.forEach((node) => node.setAttribute("aria-pressed", node.dataset.degrees === model.get("degrees").join()));
  });

  const row = (...children) => element("div", { class: "strip" }, ...children);
  const choices = Object.keys(fits).map((key) => button(`(${key.replace(",", ", ")})`, () => put([["degrees", key.split(",").map(Number)]]), { "data-degrees": key, "aria-label": `degrees ${key}` }));
  const reset = () => put(first), key = (event) => { if (event.key === "r") reset(); };
  const clear = mount(el, "Explorer of a conversion", [top, low], [
    row(element("span", { class: "title" }, "degrees"), ...choices, button("reset", reset, { title: "key r" })),
    row(element("span", {}, "ViT: W₂ GELU(W₁ x)"), element("span", {}, "KAT: W₂ F(W₁ F₁(x)) with F₁(x) = x")), top.node,
    element("div", { class: "title" }, "|F − GELU|"), low.node, row(...Object.values(out).map(({ node }) => node)),
    element("div", { class: "hint" }, `Shaded: the ${hidden.flat().length.toLocaleString("en-US")} hidden inputs W₁ x of a small MLP; “spread” is their standard deviation. Green: the interval of the fit.`),
  ], redraw);
  el.addEventListener("keydown", key);
  const changes = KEYS.map((name) => `change:${name}`).join(" ");
  model.on(changes, redraw);
  return () => { clear(); el.removeEventListener("keydown", key); model.off(changes, redraw); };
}

const isWithin = (value, [low, high]) => Number.isFinite(value) && value >= low && value <= high;
const render = drawn({
  fits: (fits) => Object.values(fits).every((pairs) => pairs.length === REACHES[1] - REACHES[0] + 1 && pairs.every(isPair)), degrees: (degrees, model) => Object.hasOwn(model.get("fits"), degrees.join()),
  reach: (reach) => Number.isInteger(reach) && isWithin(reach, REACHES), spread: (spread) => isWithin(spread, SPREADS),
  mlp: ({ inputs, fc1, fc2 }) => nested(fc1, null, inputs[0].length) && nested(fc2, null, fc1.length) && nested(inputs, null, fc1[0].length),
}, draw);
export default { render };
