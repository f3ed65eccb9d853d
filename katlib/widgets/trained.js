// TrainedExplorer: F of a trained KAT over the density of its inputs, epoch by epoch; E|F - start| as it grew; all functions as a map.
function render({ model, el }) {
  const record = JSON.parse(model.get("record")), [nodes, weights] = model.get("quadrature"), [lo, hi] = record.interval;
  const last = record.epochs.length - 1, width = (hi - lo) / record.bins, bins = Array.from({ length: record.bins }, (_, i) => i);
  const nameOf = (block, act) => `blocks.${block}.mlp.${act}`, still = matchMedia("(prefers-reduced-motion: reduce)");
  const places = Object.entries(record.functions).flatMap(([name, { counts }]) => counts[0].map((_, group) => ({ block: +name.split(".")[1], act: name.split(".")[3], group, name })));
  const most = Math.max(...places.map(({ name, group }) => record.functions[name].moved[last][group])) || 1;
  const KEYS = ["block", "function", "group"], first = [...KEYS, "epoch"].map((key) => [key, model.get(key)]);
  let probe = 1, film = null, shown = model.get("epoch");           // `shown` glides between two epochs while the film runs

  const put = (values) => { for (const [key, value] of values) model.set(key, value); model.save_changes(); };
  const here = () => ({ f: record.functions[nameOf(model.get("block"), model.get("function"))], g: model.get("group"), k: model.get("epoch") });
  // a_0 .. a_m and b_1 .. b_n of group g at epoch k: the row that it shares with its neighbours
  const pair = (f, g, k) => [f.numerator[k], f.denominator[k]].map((rows) => rows[Math.floor(g * rows.length / f.counts[k].length)]);
  const between = (at, value) => { const k = Math.min(last, Math.floor(at)), t = k < last ? at - k : 0; return t ? (1 - t) * value(k) + t * value(k + 1) : value(k); };

  const top = new Plot({ x: [-4, 4], y: [-4, 4], height: 290, margin: 46, label: "The learned function F, its start, and the density of its inputs" });
  const low = new Plot({ x: [-4, 4], y: [-1, 1], height: 140, margin: 46, label: "What training changed: F minus its start" });
  const time = new Plot({ x: [0, Math.max(1, last)], y: [0, 1], height: 150, margin: 60, xlabel: "epoch", label: "Distance from the start, E|F − start|, of all groups of this function" });
  const go = (k) => put([["epoch", Math.min(last, Math.max(0, Math.round(k)))]]);
  const pause = () => { cancelAnimationFrame(film); film = null; shown = here().k; redraw(); };
  top.handle({ name: "x", style: "ink", shape: "rect", along: "x", step: 0.05, where: () => [probe, top.y[0]], says: () => `x = ${digits(probe)}`,
    move: (x) => { probe = Math.min(top.x[1], Math.max(top.x[0], x)); redraw(); } });
  time.handle({ name: "epoch", style: "blue", along: "x", step: 1, where: () => [shown, between(shown, (k) => here().f.moved[k][here().g])], says: () => `epoch ${record.epochs[here().k].epoch}`,
    move: (x) => { if (film !== null) pause(); go(x); } });

  function play() {                                                 // from the start once more, if it is at the end
    if (film !== null) return pause();
    if (here().k === last) go(0);
    let before = null, waited = 0;
    const frame = (now) => {
      waited += before === null ? 0 : Math.min(100, now - before) / (still.matches ? 1200 : 500);
      before = now;
      const from = here().k;
      if (waited >= 1 && from < last) { waited -= 1; go(from + 1); }
      if (here().k === last) return pause();
      shown = here().k + (still.matches ? 0 : Math.min(1, waited));
      film = requestAnimationFrame(frame);
      redraw();
    };
    film = requestAnimationFrame(frame);
    redraw();
  }

  let reach = null;                                                 // where all but 1 in 1,000 inputs fall, by epoch, on each side
  function choose() {                                               // new axes: they hold every epoch, so that nothing jumps in the film
    const { f, g } = here(), epochs = record.epochs.map((_, k) => k);
    reach = epochs.map((k) => {
      const all = f.counts[k][g], end = (list) => { let sum = 0; return list.findIndex((n) => (sum += n) > record.unit / 1000); };
      return [Math.max(lo, lo + (end(all) - 1) * width), Math.min(hi, hi - (end([...all].reverse()) - 1) * width)];
    });
    const far = Math.ceil(Math.max(3, ...reach.flat().map(Math.abs)));
    top.x = low.x = [-far, far];
    const values = epochs.flatMap((k) => bins.filter((i) => lo + i * width >= reach[k][0] && lo + (i + 1) * width <= reach[k][1]).map((i) => lo + (i + 0.5) * width)
      .map((x) => [rational(x, ...pair(f, g, k)), rational(x, ...pair(f, g, 0))]));
    const [least, greatest] = [Math.min(...values.flat()), Math.max(...values.flat())], apart = Math.max(0.05, ...values.map(([y, y0]) => Math.abs(y - y0)));
    top.y = [least - 0.45 * (greatest - least), greatest + 0.12 * (greatest - least)];
    low.y = [-1.15 * apart, 1.15 * apart];
    time.y = [0, 1.15 * Math.max(1e-3, ...f.moved.flat())];
    probe = Math.min(far, Math.max(-far, probe));
    for (const plot of [top, low, time]) plot.layout(plot.width);
    redraw();
  }

  function shade(plot, style, heights, base, unit) {                // a step for each bin, `unit` high where the height is 1
    const to = (y) => plot.py(base + y * unit).toFixed(1);
    plot.path(style, style, true).setAttribute("d", `M${plot.px(lo)} ${to(0)}` + heights.map((h, i) => `V${to(h)}H${plot.px(lo + (i + 1) * width).toFixed(1)}`).join("") + `V${to(0)}Z`);
  }

  const out = Object.fromEntries([["epoch", "epoch"], ["accuracy", "test accuracy"], ["moved", "E|F − start| ="], ["second", "E[F(x)²] ="], ["assumed", "at its start, for N(0, 1):"], ["mean", "inputs: mean"],
    ["std", "deviation"], ["inside", "in [−3, 3]"], ["falling", "where F falls"], ["x", "x ="], ["F", "F(x) ="], ["start", "start(x) ="], ["dF", "F′(x) ="]].map(([key, label]) => [key, readout(label, key)]));
  const redraw = once(() => {
    const { f, g, k } = here(), [a, b] = pair(f, g, k), start = pair(f, g, 0), [left, right] = reach[k];
    const F = (x) => between(shown, (j) => rational(x, ...pair(f, g, j))), S = (x) => rational(x, ...start), where = (y) => (x) => (x >= left && x <= right ? y(x) : NaN);
    const counts = bins.map((i) => between(shown, (j) => f.counts[j][g][i + 1])), peak = Math.max(...f.counts.flatMap((epoch) => epoch[g].slice(1, -1)));
    shade(top, "", counts.map((n) => n / peak), top.y[0], 0.26 * (top.y[1] - top.y[0]));
    top.curve("start", "ink dash thin", S, "start");
    top.curve("far", "blue thin", F, "F");
    top.curve("F", "blue strong", where(F), "");
    shade(low, "", counts.map((n) => n / peak), low.y[0], 0.4 * (low.y[1] - low.y[0]));
    low.curve("far", "orange thin", (x) => F(x) - S(x));
    low.curve("change", "orange strong", where((x) => F(x) - S(x)), "");
    f.moved[0].forEach((_, j) => time.curve(`group ${j}`, j === g ? "blue" : "ink faint", (x) => between(x, (n) => f.moved[n][j]), j === g ? `group ${g}` : ""));
    for (const plot of [top, low, time]) plot.place();
    const moment = nodes.reduce((sum, z, i) => sum + weights[i] * S(z) ** 2, 0), inside = f.counts[k][g].slice(1, -1), total = inside.reduce((sum, n) => sum + n, 0);
    const falling = inside.reduce((sum, n, i) => sum + (derivative(lo + (i + 0.5) * width, a, b) < 0 ? n : 0), 0) / total;
    const numbers = { moved: f.moved[k][g], second: f.second_moment[k][g], assumed: moment, mean: f.mean[k][g], std: f.std[k][g], x: probe, F: rational(probe, a, b), start: S(probe), dF: derivative(probe, a, b) };
    for (const [key, value] of Object.entries(numbers)) out[key].show(value);
    for (const [key, value] of Object.entries({ inside: f.inside[k][g], falling, accuracy: record.epochs[k].test_accuracy ?? NaN })) out[key].show(value, Number.isFinite(value) ? `${(100 * value).toFixed(1)}%` : "–");
    out.epoch.show(record.epochs[k].epoch, `${record.epochs[k].epoch} of ${record.epochs[last].epoch}`);
    for (const { node, place, path } of tiles) {
      const own = record.functions[place.name], chosen = place.block === model.get("block") && place.act === model.get("function") && place.group === g;
      for (const [key, value] of Object.entries({ "aria-checked": chosen, tabindex: chosen ? 0 : -1 })) node.setAttribute(key, value);
      node.style.setProperty("--heat", (between(shown, (j) => own.moved[j][place.group]) / most).toFixed(3));
      path.setAttribute("d", bins.filter((i) => Math.abs(lo + i * width) <= 3).map((i, n) => `${n ? "L" : "M"}${20 + 6 * (lo + i * width)} ${(14 - 4 * between(shown, (j) => rational(lo + i * width, ...pair(own, place.group, j)))).toFixed(1)}`).join(""));
    }
    KEYS.forEach((key, i) => { selects[i].value = model.get(key); });
    player.textContent = film === null ? "▶ play" : "❚❚ pause";
    player.setAttribute("aria-label", film === null ? "play training as a film" : "pause the film");
  });

  const take = ({ block, act, group }) => put([["block", block], ["function", act], ["group", group]]);
  const tiles = places.map((place) => {
    const path = element("path", { class: "curve blue thin" }), heat = element("rect", { width: 40, height: 28, class: "heat" });
    const node = element("button", { type: "button", role: "radio", class: "tile", "aria-label": `block ${place.block}, ${place.act}, group ${place.group}`, "data-place": `${place.block} ${place.act} ${place.group}`, onclick: () => take(place) },
      element("svg", { viewBox: "0 0 40 28", preserveAspectRatio: "none", "aria-hidden": "true" }, heat, path));
    return { node, place, path };
  });
  const rows = Object.keys(record.functions), columns = Math.max(...rows.map((name) => record.functions[name].counts[0].length));
  const map = element("div", { class: "map", role: "radiogroup", "aria-label": "all functions: shaded by their distance from the start", style: `--columns: ${columns}`, onkeydown: (event) => {
    const now = tiles.findIndex(({ node }) => node === event.target), by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key], next = by && tiles[now + by];
    if (by) event.preventDefault();
    if (next) { take(next.place); next.node.focus({ preventScroll: true }); }
  } }, ...rows.flatMap((name) => [element("span", { class: "row" }, name.replace(/blocks\.(\d+)\.mlp\./, "$1 ")), ...tiles.filter(({ place }) => place.name === name).map(({ node }) => node)]));
  const selects = KEYS.map((key, i) => element("select", { "aria-label": key, onchange: (event) => put([[key, i === 1 ? event.target.value : +event.target.value]]) },
    ...[...new Set(places.map((place) => place[["block", "act", "group"][i]]))].map((value) => element("option", { value }, value))));
  const player = button("▶ play", play, { class: "play" }), row = (...keys) => element("div", { class: "strip" }, ...keys.map((key) => out[key].node));
  const reset = () => { if (film !== null) pause(); put(first); };

  const clear = mount(el, "Explorer of a trained KAT", [top, low, time], [
    element("div", { class: "strip controls" }, player, ...KEYS.map((key, i) => element("label", { class: "field" }, key, selects[i])), button("reset", reset, { title: "key r" })),
    row("epoch", "accuracy", "moved"), top.node, row("x", "F", "start", "dF"), low.node, row("mean", "std", "inside", "falling", "second", "assumed"), time.node,
    element("div", { class: "title" }, "all functions, by block and group"), map,
  ], redraw_first);
  function redraw_first() { if (reach) redraw(); else choose(); }
  const moved = () => { if (film === null) shown = model.get("epoch"); redraw(); }, key = (event) => {
    if (event.target.closest("select, input")) return;
    if (event.key === "r") reset();
    if (event.key === " " && event.target.closest(".knob")) { event.preventDefault(); play(); }
  };
  el.addEventListener("keydown", key);
  model.on("change:epoch", moved);
  model.on("change:block change:function change:group", choose);
  return () => { cancelAnimationFrame(film); clear(); el.removeEventListener("keydown", key); model.off("change:epoch", moved); model.off("change:block change:function change:group", choose); };
}

export default { render };
