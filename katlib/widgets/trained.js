// TrainedExplorer: F of a trained KAT over the density of its inputs, epoch by epoch; E|F - start| as it grew; all functions as a map.
const KEYS = ["block", "function", "group"];
const READOUTS = { epoch: "epoch", accuracy: "test accuracy", moved: "E|F − start| =", x: "x =", F: "F(x) =", start: "start(x) =", dF: "F′(x) =",
  mean: "inputs: mean", std: "deviation", inside: "in [−3, 3]", outside: "outside the bins", falling: "F falls for", second: "E[F(x)²] =", assumed: "of its start for N(0, 1):" };

// Whether a record has for each function what the figure draws: the same epochs and groups everywhere.
function isRecord(text) {
  const { interval, bins, unit, epochs, functions } = JSON.parse(text), count = epochs.length, histories = Object.entries(functions);
  const groups = histories[0][1].moved[0].length;
  return isInterval(interval) && bins > 0 && unit > 0 && count > 0 && groups > 0 && epochs.every(({ epoch }) => Number.isFinite(epoch))
    && histories.every(([name, history]) => /^blocks\.\d+\.mlp\.act[12]$/.test(name) && nested(history.counts, count, groups, bins + 2)
      && ["mean", "std", "inside", "moved", "second_moment"].every((key) => nested(history[key], count, groups))
      && ["numerator", "denominator"].every((key) => nested(history[key], count, null, null) && history[key].every((rows) => rows.length > 0)));
}

function isPlace(_, model) {
  const { epochs, functions } = JSON.parse(model.get("record")), history = functions[`blocks.${model.get("block")}.mlp.${model.get("function")}`];
  return model.get("group") in history.moved[0] && model.get("epoch") in epochs;
}

function draw({ model, el }) {
  const record = JSON.parse(model.get("record")), [nodes, weights] = model.get("quadrature"), [lo, hi] = record.interval;
  const last = record.epochs.length - 1, epochs = record.epochs.map((_, k) => k), width = (hi - lo) / record.bins;
  const middles = Array.from({ length: record.bins }, (_, i) => lo + (i + 0.5) * width);
  const places = Object.entries(record.functions).flatMap(([name, { counts }]) => counts[0].map((_, group) => {
    const [, block, , act] = name.split(".");
    return { name, group, values: [+block, act, group] };
  }));
  const most = Math.max(...places.map(({ name, group }) => record.functions[name].moved[last][group])) || 1;
  const first = [...KEYS, "epoch"].map((key) => [key, model.get(key)]), still = matchMedia("(prefers-reduced-motion: reduce)");
  let probe = 1, film = null, shown = model.get("epoch"), reach, drawn;   // `shown` glides from one epoch to the next while the film runs

  const put = (values) => { for (const [key, value] of values) model.set(key, value); model.save_changes(); };
  const take = ({ values }) => put(KEYS.map((key, i) => [key, values[i]]));
  const here = () => ({ f: record.functions[`blocks.${model.get("block")}.mlp.${model.get("function")}`], g: model.get("group"), k: model.get("epoch") });
  // a_0 .. a_m and b_1 .. b_n of group g at epoch k: the rows that it shares with its neighbours
  const pair = (f, g, k) => [f.numerator[k], f.denominator[k]].map((rows) => rows[Math.floor(g * rows.length / f.counts[k].length)]);
  const between = (at, value) => {
    const k = Math.min(last, Math.floor(at)), t = k < last ? at - k : 0;
    return t ? (1 - t) * value(k) + t * value(k + 1) : value(k);
  };

  const top = new Plot({ x: [-4, 4], y: [-4, 4], height: 290, margin: 46, label: "The learned function F, its start, and the density of its inputs" });
  const low = new Plot({ x: [-4, 4], y: [-1, 1], height: 140, margin: 46, label: "What training changed: F minus its start" });
  const time = new Plot({ x: [0, Math.max(1, last)], y: [0, 1], height: 150, margin: 60, xlabel: "",
    label: "Distance from the start, E|F − start|, of the groups of this function" });
  const go = (k) => put([["epoch", Math.min(last, Math.max(0, Math.round(k)))]]);
  top.handle({ name: "x", style: "ink", shape: "rect", along: "x", step: 0.05, where: () => [probe, top.y[0]], says: () => `x = ${digits(probe)}`,
    move: (x) => { probe = Math.min(top.x[1], Math.max(top.x[0], x)); redraw(); } });
  time.handle({ name: "epoch", style: "blue", along: "x", step: 1, where: () => [shown, between(shown, (k) => here().f.moved[k][here().g])],
    says: () => `epoch ${record.epochs[here().k].epoch}`, move: (x) => { if (film !== null) pause(); go(x); } });

  function pause() {
    cancelAnimationFrame(film);
    film = null;
    shown = here().k;
    redraw();
  }

  function play() {                                                 // from the start once more, if it is at the end
    if (film !== null) return pause();
    if (here().k === last) go(0);
    let before = null, waited = 0;                                  // in epochs
    film = requestAnimationFrame(function frame(now) {
      waited += before === null ? 0 : Math.min(100, now - before) / (still.matches ? 1200 : 500);
      before = now;
      if (waited >= 1) { waited -= 1; go(here().k + 1); }
      if (here().k === last) return pause();
      shown = here().k + (still.matches ? 0 : waited);
      film = requestAnimationFrame(frame);
      redraw();
    });
    redraw();
  }

  function choose() {                                               // new axes, which hold every epoch, so that nothing jumps in the film
    const { f, g } = here();
    const end = (counts) => { let sum = 0; return counts.findIndex((n) => (sum += n) > record.unit / 1000); };
    reach = epochs.map((k) => [Math.max(lo, lo + (end(f.counts[k][g]) - 1) * width),        // all but 1 in 1,000 inputs on either side
      Math.min(hi, hi - (end([...f.counts[k][g]].reverse()) - 1) * width)]).map(([left, right]) => (left < right ? [left, right] : [lo, hi]));
    const far = Math.ceil(Math.max(3, ...reach.flat().map(Math.abs)));
    const values = epochs.flatMap((k) => middles.filter((x) => x >= reach[k][0] && x <= reach[k][1])
      .map((x) => [rational(x, ...pair(f, g, k)), rational(x, ...pair(f, g, 0))]));
    const least = Math.min(...values.flat()), greatest = Math.max(...values.flat()), apart = Math.max(0.05, ...values.map(([y, y0]) => Math.abs(y - y0)));
    top.x = low.x = [-far, far];
    top.y = [least - 0.45 * (greatest - least), greatest + 0.12 * (greatest - least)];
    low.y = [-1.15 * apart, 1.15 * apart];
    time.y = [0, 1.15 * Math.max(1e-3, ...f.moved.flat())];
    probe = Math.min(far, Math.max(-far, probe));
    for (const plot of [top, low, time]) plot.layout(plot.width);
    redraw();
  }

  function shade(plot, heights, share) {                            // a step for each bin, from the lower edge up; 1 is `share` of the height
    const x = (i) => plot.px(lo + i * width).toFixed(1), y = (h) => plot.py(plot.y[0] + h * share * (plot.y[1] - plot.y[0])).toFixed(1);
    plot.path("density", "", true).setAttribute("d", `M${x(0)} ${y(0)}${heights.map((h, i) => `V${y(h)}H${x(i + 1)}`).join("")}V${y(0)}Z`);
  }

  const out = Object.fromEntries(Object.entries(READOUTS).map(([key, label]) => [key, readout(label, key)]));
  const redraw = once(() => {
    const { f, g, k } = here(), [a, b] = pair(f, g, k), start = pair(f, g, 0), [left, right] = reach[k];
    const F = (x) => between(shown, (j) => rational(x, ...pair(f, g, j))), F0 = (x) => rational(x, ...start), change = (x) => F(x) - F0(x);
    const reached = (y) => (x) => (x >= left && x <= right ? y(x) : NaN);
    const peak = Math.max(1, ...f.counts.flatMap((counts) => counts[g].slice(1, -1)));
    const heights = middles.map((_, i) => between(shown, (j) => f.counts[j][g][i + 1]) / peak);
    shade(top, heights, 0.26);
    shade(low, heights, 0.4);
    top.curve("start", "ink dash thin", F0, "start");
    top.curve("all", "blue thin", F, "F");
    top.curve("F", "blue strong", reached(F));
    low.curve("all", "orange thin", change);
    low.curve("change", "orange strong", reached(change));
    const wanted = `${KEYS.map((key) => model.get(key))} ${time.width}`;
    if (drawn !== wanted) {                                         // the same in every frame of the film
      f.moved[0].forEach((_, j) => time.curve(`group ${j}`, "ink faint", (at) => between(at, (n) => f.moved[n][j])));
      time.curve("chosen", "blue", (at) => between(at, (n) => f.moved[n][g]));
      drawn = wanted;
    }
    for (const plot of [top, low, time]) plot.place();

    const inside = f.counts[k][g].slice(1, -1), sum = (list) => list.reduce((total, value) => total + value, 0);
    const falling = sum(inside.filter((_, i) => derivative(middles[i], a, b) < 0)) / sum(inside);
    const numbers = { x: probe, F: rational(probe, a, b), start: F0(probe), dF: derivative(probe, a, b), moved: f.moved[k][g], mean: f.mean[k][g], std: f.std[k][g],
      second: f.second_moment[k][g], assumed: sum(nodes.map((z, i) => weights[i] * F0(z) ** 2)) };
    const shares = { inside: f.inside[k][g], outside: 1 - sum(inside) / record.unit, falling, accuracy: record.epochs[k].test_accuracy ?? NaN };
    for (const [key, value] of Object.entries(numbers)) out[key].show(value);
    for (const [key, value] of Object.entries(shares)) out[key].show(value, Number.isFinite(value) ? `${(100 * value).toFixed(1)}%` : "–");
    out.epoch.show(record.epochs[k].epoch, `${record.epochs[k].epoch} of ${record.epochs[last].epoch}`);
    for (const { place: { name, group, values }, node, path } of tiles) {
      const own = record.functions[name], chosen = KEYS.every((key, i) => values[i] === model.get(key));
      node.setAttribute("aria-checked", chosen);
      node.setAttribute("tabindex", chosen ? 0 : -1);
      node.style.setProperty("--heat", (between(shown, (j) => own.moved[j][group]) / most).toFixed(3));
      path.setAttribute("d", `M${grid.map((x) => `${20 + 6 * x} ${(14 - 4 * between(shown, (j) => rational(x, ...pair(own, group, j)))).toFixed(1)}`).join("L")}`);
    }
    selects.forEach((select, i) => { select.value = model.get(KEYS[i]); });
    player.textContent = film === null ? "▶ play" : "❚❚ pause";
  });

  const grid = Array.from({ length: 25 }, (_, i) => -3 + i / 4);   // where a tile draws its function
  const tiles = places.map((place) => {
    const [block, act, group] = place.values, path = element("path", { class: "curve blue thin" });
    const drawing = element("svg", { viewBox: "0 0 40 28", preserveAspectRatio: "none", "aria-hidden": "true" }, element("rect", { width: 40, height: 28, class: "heat" }), path);
    return { place, path, node: element("button", { type: "button", role: "radio", class: "tile", "aria-label": `block ${block}, ${act}, group ${group}`,
      "data-place": place.values.join(" "), onclick: () => take(place) }, drawing) };
  });
  const rows = Object.keys(record.functions), columns = places.length / rows.length;
  const map = element("div", { class: "map", role: "radiogroup", "aria-label": "all functions", style: `--columns: ${columns}`, onkeydown: (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    const next = by && tiles[tiles.findIndex(({ node }) => node === event.target) + by];
    if (by) event.preventDefault();
    if (next) { take(next.place); next.node.focus({ preventScroll: true }); }
  } }, ...rows.flatMap((name, i) => [element("span", { class: "lane" }, name.replace(/^blocks\.(\d+)\.mlp\./, "$1 ")),
    ...tiles.slice(i * columns, (i + 1) * columns).map(({ node }) => node)]));
  const selects = KEYS.map((key, i) => element("select", { "aria-label": key, onchange: (event) => put([[key, i === 1 ? event.target.value : +event.target.value]]) },
    ...[...new Set(places.map(({ values }) => values[i]))].map((value) => element("option", { value }, value))));
  const player = button("▶ play", play, { class: "play", title: "key space on the handle" });
  const reset = () => { if (film !== null) pause(); put(first); };
  const row = (...keys) => element("div", { class: "strip" }, ...keys.map((key) => out[key].node)), title = (text) => element("div", { class: "title" }, text);

  const clear = mount(el, "Explorer of a trained KAT", [top, low, time], [
    element("div", { class: "strip controls" }, player, ...KEYS.map((key, i) => element("label", { class: "field" }, key, selects[i])), button("reset", reset, { title: "key r" })),
    row("epoch", "accuracy", "moved"), top.node, row("x", "F", "start", "dF"), title("F − start"), low.node,
    row("mean", "std", "inside", "outside", "falling", "second", "assumed"), title("E|F − start| of the groups of this function, epoch by epoch"), time.node,
    title("all functions, by block and group, shaded by E|F − start|"), map,
  ], () => (reach ? redraw() : choose()));
  const stepped = () => { if (film === null) shown = model.get("epoch"); redraw(); };
  const key = (event) => {
    if (event.key === "r" && event.target.tagName !== "SELECT") reset();
    if (event.key === " " && event.target.closest(".knob")) { event.preventDefault(); play(); }
  };
  el.addEventListener("keydown", key);
  model.on("change:epoch", stepped);
  model.on("change:block change:function change:group", choose);
  return () => {
    cancelAnimationFrame(film);
    clear();
    el.removeEventListener("keydown", key);
    model.off("change:epoch", stepped);
    model.off("change:block change:function change:group", choose);
  };
}

const render = drawn({ record: isRecord, quadrature: areTwins, epoch: isPlace }, draw);
export default { render };
