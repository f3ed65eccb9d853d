// SplineExplorer: a B-spline, its coefficients as handles above the middle of what each of them moves, and the basis below.
function basis(x, k, knots, order) {                                // B_k(x) by the Cox-de Boor recursion
  if (order === 0) return knots[k] <= x && x < knots[k + 1] ? 1 : 0;
  const left = (x - knots[k]) / (knots[k + order] - knots[k]), right = (knots[k + order + 1] - x) / (knots[k + order + 1] - knots[k + 1]);
  return left * basis(x, k, knots, order - 1) + right * basis(x, k + 1, knots, order - 1);
}

function draw({ model, el }) {
  const [lo, hi] = model.get("interval"), beyond = 0.25 * (hi - lo);
  const state = () => ({ c: model.get("coefficients"), grid: model.get("grid"), order: model.get("order") });
  const knotsOf = (grid, order) => Array.from({ length: grid + 2 * order + 1 }, (_, i) => lo + (i - order) * (hi - lo) / grid);
  // the middle of what B_k depends on: where its handle stands
  const middle = (k, { grid, order }) => { const t = knotsOf(grid, order); return (t[k] + t[k + order + 1]) / 2; };
  const value = (x, { c, grid, order }) => { const t = knotsOf(grid, order); return c.reduce((sum, ck, k) => sum + ck * basis(x, k, t, order), 0); };
  const first = { grid: model.get("grid"), order: model.get("order"), coefficients: [...model.get("coefficients")] };
  let probe = lo + 0.62 * (hi - lo), active = Math.floor(first.coefficients.length / 2);

  const span = [lo - beyond - (hi - lo) / 4, hi + beyond + (hi - lo) / 4];
  const top = new Plot({ x: span, y: [-1.6, 1.6], height: 260, label: "A B-spline with a handle for each coefficient" });
  const low = new Plot({ x: span, y: [0, 1.05], height: 130, label: "The basis functions" });
  const put = (values) => { for (const [key, entry] of Object.entries(values)) model.set(key, entry); model.save_changes(); };
  const reset = () => { rebuild(first.grid, first.order, first.coefficients); };

  // Another grid or order: each coefficient becomes the old spline's value where its handle stands.
  function rebuild(grid, order, coefficients) {
    const old = state();
    put({ grid, order, coefficients: coefficients ?? Array.from({ length: grid + order }, (_, k) => value(Math.min(hi - 1e-9, Math.max(lo, middle(k, { grid, order }))), old)) });
  }

  function knobs() {                                                // one handle for each coefficient there is now
    const { c } = state();
    if (top.handles.length === c.length + 1) return;
    top.handles = [];
    top.knobs.replaceChildren();
    c.forEach((_, k) => top.handle({ name: `c${k + 1}`, style: "blue", step: 0.02, where: () => [middle(k, state()), state().c[k]], says: () => `c${k + 1} = ${digits(state().c[k])}`,
      move: (_, y) => { active = k; put({ coefficients: state().c.map((old, i) => (i === k ? y : old)) }); } }));
    top.handles.forEach(({ knob }, k) => knob.addEventListener("focus", () => { active = k; redraw(); }));
    top.handle({ name: "x", style: "ink", shape: "rect", along: "x", step: 0.02, where: () => [probe, top.y[0]],
      says: () => `x = ${digits(probe)}`, move: (x) => { probe = Math.min(hi, Math.max(lo, x)); redraw(); } });
  }

  const results = { count: readout("coefficients: grid + order =", "count"), x: readout("x =", "x"), value: readout("spline(x) =", "value"),
    nonzero: readout("basis functions that are not 0 at x:", "nonzero"), sum: readout("their sum:", "sum") };
  const orders = [0, 1, 2, 3].map((order) => button(String(order), () => rebuild(model.get("grid"), order), { "data-order": order, "aria-label": `order ${order}` }));
  const size = element("input", { type: "range", min: 2, max: 12, "aria-label": "grid", oninput: () => rebuild(size.valueAsNumber, model.get("order")) });
  const grid = element("output", { "data-key": "grid" });

  const redraw = once(() => {
    const now = state(), t = knotsOf(now.grid, now.order);
    if (now.c.length !== now.grid + now.order) return;              // assigned one after the other: the rest is on its way
    knobs();
    active = Math.min(active, now.c.length - 1);
    const from = t[active], to = t[active + now.order + 1];
    top.area("reach", "", (x) => top.y[1], Math.max(from, span[0]), Math.min(to, span[1]));
    top.area("reach below", "", (x) => top.y[0], Math.max(from, span[0]), Math.min(to, span[1]));
    top.verticals("knots", "ink thin dot-line", t.slice(now.order, now.order + now.grid + 1));
    top.curve("spline", "blue", (x) => (x < lo || x >= hi ? NaN : value(x, now)));
    for (let k = 0; k < 16; k++) low.curve(`B${k}`, k === active ? "blue" : "ink thin dash", k < now.c.length && k !== active && ((x) => basis(x, k, t, now.order)));
    low.curve("active", "blue", (x) => basis(x, active, t, now.order));
    top.place();
    const at = now.c.map((_, k) => basis(probe, k, t, now.order));
    results.count.show(now.c.length, `${now.grid} + ${now.order} = ${now.c.length}`);
    results.x.show(probe);
    results.value.show(value(probe, now));
    results.nonzero.show(at.filter((entry) => entry > 0).length);
    results.sum.show(at.reduce((sum, entry) => sum + entry, 0));
    orders.forEach((node, order) => node.setAttribute("aria-pressed", order === now.order));
    size.value = now.grid;
    grid.value = now.grid;
  });

  const row = (...children) => element("div", { class: "strip" }, ...children);
  const key = (event) => { if (event.key === "r") reset(); };
  const clear = mount(el, "Explorer of a B-spline", [top, low], [
    row(element("span", { class: "title" }, "order"), ...orders, element("label", { class: "field" }, "grid", size, grid), button("reset", reset, { title: "key r" })),
    top.node, row(results.x.node, results.value.node, results.nonzero.node, results.sum.node), low.node, row(results.count.node),
    element("div", { class: "hint" }, "Shaded: all that the chosen coefficient moves. Its basis function is the solid one below."),
  ], redraw);
  el.addEventListener("keydown", key);
  model.on("change:coefficients change:grid change:order", redraw);
  return () => { clear(); el.removeEventListener("keydown", key); model.off("change:coefficients change:grid change:order", redraw); };
}

const render = drawn({
  interval: isInterval, grid: (grid) => Number.isInteger(grid) && grid >= 2 && grid <= 12, order: (order) => [0, 1, 2, 3].includes(order),
  coefficients: (c, model) => nested(c, model.get("grid") + model.get("order")),
}, draw);
export default { render };
