// SeedsExplorer: studies of a few seeds each, drawn at random around a true difference, and how often their intervals miss it.
const SHOWN = 50, SEEDS = [2, 20], HIGH = 3, DIFFERENCE = [-2.5, 2.5], SCATTER = [0.05, 2.5], MULTIPLIERS = { t: "Student's t", normal: "1.96" };

// P(|T| < t) for Student's t distribution with so many degrees of freedom (Abramowitz & Stegun, 26.7.3 and 26.7.4).
function within(t, freedom) {
  const angle = Math.atan(t / Math.sqrt(freedom)), sine = Math.sin(angle), cosine = Math.cos(angle), odd = freedom % 2;
  let term = odd ? cosine : 1, sum = 0;
  for (let k = odd ? 2 : 1; k < freedom; k += 2) { sum += term; term *= k / (k + 1) * cosine * cosine; }
  return odd ? 2 / Math.PI * (angle + sine * sum) : sine * sum;
}

// The t of a 95% interval: P(|T| < t) = 0.95, by bisection.
function quantile(freedom) {
  let low = 0, high = 20;
  for (let k = 0; k < 60; k++) { const middle = (low + high) / 2; if (within(middle, freedom) < 0.95) low = middle; else high = middle; }
  return high;
}

const multiplier = (name, seeds) => (name === "t" ? quantile(seeds - 1) : 1.96);

// One study's mean difference and the half width of its interval. `drawn`: standard normal numbers, of which the first `seeds` count.
function interval(drawn, { difference, scatter, seeds, factor }) {
  const values = drawn.slice(0, seeds).map((z) => difference + scatter * z), mean = values.reduce((sum, d) => sum + d, 0) / seeds;
  const s = Math.sqrt(values.reduce((sum, d) => sum + (d - mean) ** 2, 0) / (seeds - 1));
  return { values, mean, half: factor * s / Math.sqrt(seeds) };
}

function draw({ model, el }) {
  const KEYS = ["difference", "scatter", "seeds", "multiplier"], first = Object.fromEntries(KEYS.map((key) => [key, model.get(key)]));
  const limited = (value, [low, high]) => Math.min(high, Math.max(low, value)), put = (key, value) => { model.set(key, value); model.save_changes(); };
  const setDifference = (value) => put("difference", limited(value, DIFFERENCE)), setScatter = (value) => put("scatter", limited(value, SCATTER));
  let next = null, studies = [];
  const drawMore = (count) => { for (let i = 0; i < count; i++) studies.push(Array.from({ length: SEEDS[1] }, next)); redraw(); };
  const startOver = () => { next = normals(0); studies = []; drawMore(SHOWN); };

  const plot = new Plot({ x: [-1, SHOWN + 2], y: [-HIGH, HIGH], height: 300, margin: 46, xlabel: "study", label: "The intervals of the last studies, with handles for the true difference and the scatter of single seeds" });
  plot.handle({ name: "truth", style: "ink", step: 0.05, where: () => [0, model.get("difference")], says: () => `true difference ${digits(model.get("difference"))}`, move: (_, y) => setDifference(y) });
  plot.handle({ name: "scatter", style: "pink", step: 0.05, where: () => [SHOWN + 1, model.get("difference") + model.get("scatter")], says: () => `scatter of single seeds ${digits(model.get("scatter"))}`,
    move: (_, y) => setScatter(y - model.get("difference")) });

  const seeds = element("input", { type: "range", min: SEEDS[0], max: SEEDS[1], "aria-label": "seeds per study", oninput: () => put("seeds", seeds.valueAsNumber) });
  const count = element("output", { "data-key": "seeds" });
  const choices = Object.entries(MULTIPLIERS).map(([key, text]) => button(text, () => put("multiplier", key), { "data-multiplier": key }));
  const fields = [field("true difference", setDifference, 0.1), field("scatter", setScatter, 0.1)];
  const results = { studies: readout("studies:", "studies"), missed: readout("intervals that miss the truth:", "missed"), expected: readout("expected:", "expected"),
    found: readout("intervals that leave out 0:", "found"), factor: readout("half width: s / √n times", "factor") };
  const percent = (share) => `${(100 * share).toFixed(1)}%`;

  const redraw = once(() => {
    const now = Object.fromEntries(KEYS.map((key) => [key, model.get(key)])), factor = multiplier(now.multiplier, now.seeds);
    const all = studies.map((drawn) => interval(drawn, { ...now, factor })), misses = ({ mean, half }) => Math.abs(mean - now.difference) > half;
    const last = all.slice(-SHOWN), bars = (some) => last.flatMap(({ mean, half }, i) => (some(last[i]) ? [[i + 1, mean - half], [i + 1, mean + half], [NaN, NaN]] : []));
    const dots = (values, x, radius) => values.map((y) => `M${plot.px(x) - radius} ${plot.py(y)}a${radius} ${radius} 0 1 0 ${2 * radius} 0a${radius} ${radius} 0 1 0 ${-2 * radius} 0`).join("");
    plot.trace("truth", "ink thin", [[-1, now.difference], [SHOWN + 2, now.difference]]);
    plot.trace("scatter", "pink thin dash", [-1, 1].flatMap((side) => [[-1, now.difference + side * now.scatter], [SHOWN + 2, now.difference + side * now.scatter], [NaN, NaN]]));
    plot.trace("hits", "blue", bars((study) => !misses(study)));
    plot.trace("misses", "orange strong", bars(misses));
    plot.path("means", "ink").setAttribute("d", last.map(({ mean }, i) => dots([mean], i + 1, 1)).join(""));
    plot.path("seeds", "pink").setAttribute("d", last.length ? dots(last[last.length - 1].values, last.length, 2) : "");
    plot.place();
    const missed = all.filter(misses).length / all.length, found = all.filter(({ mean, half }) => Math.abs(mean) > half).length / all.length;
    results.studies.show(all.length, String(all.length));
    results.missed.show(missed, percent(missed));
    results.expected.show(1 - within(factor, now.seeds - 1), percent(1 - within(factor, now.seeds - 1)));
    results.found.show(found, percent(found));
    results.factor.show(factor);
    seeds.value = now.seeds;
    count.value = now.seeds;
    choices.forEach((node) => node.setAttribute("aria-pressed", node.dataset.multiplier === now.multiplier));
    fields[0].show(now.difference);
    fields[1].show(now.scatter);
  });

  const row = (...children) => element("div", { class: "strip" }, ...children), controls = (...children) => element("div", { class: "strip controls" }, ...children);
  const swatch = (style, text) => element("span", { class: "choice" }, element("span", { class: `swatch ${style}`, "aria-hidden": "true" }), text);
  const reset = () => { startOver(); for (const key of KEYS.slice(1)) model.set(key, first[key]); put("difference", first.difference); };
  const clear = mount(el, "Explorer of seeds and intervals", [plot], [
    controls(button("one more study", () => drawMore(1)), button("100 more", () => drawMore(100)), button("reset", reset, { title: "key r" })),
    controls(element("label", { class: "field" }, "seeds per study", seeds, count), element("span", { class: "title" }, "half width from"), ...choices),
    row(swatch("blue", "holds the truth"), swatch("orange", "misses it"), swatch("pink", "seeds of the last study"), swatch("pink dash", "scatter of single seeds")),
    element("div", { class: "title" }, "each study’s mean difference, in points, with its 95% interval"),
    plot.node, row(results.studies.node, results.missed.node, results.expected.node), row(results.found.node, results.factor.node), row(...fields.map(({ node }) => node)),
  ], redraw);
  const key = (event) => { if (event.key === "r" && event.target.tagName !== "INPUT") reset(); };
  const changes = KEYS.map((name) => `change:${name}`).join(" ");
  el.addEventListener("keydown", key);
  model.on(changes, redraw);
  startOver();
  return () => { clear(); el.removeEventListener("keydown", key); model.off(changes, redraw); };
}

const inside = ([low, high]) => (value) => Number.isFinite(value) && value >= low && value <= high;
const render = drawn({
  difference: inside(DIFFERENCE), scatter: inside(SCATTER), seeds: (seeds) => Number.isInteger(seeds) && inside(SEEDS)(seeds), multiplier: (name) => Object.hasOwn(MULTIPLIERS, name),
}, draw);
export default { render };
