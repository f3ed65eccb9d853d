// SplineCostExplorer: the kernels of a B-spline basis, what each reads and writes, and how that grows with the grid and the order.
const GRIDS = [1, 20], ORDERS = [0, 4], TOKENS = 512, WIDTH = 128, INPUTS = TOKENS * WIDTH, FLOAT = 4;

// What PyTorch runs for bspline_basis in katlib: for each kernel its stage, and the bytes that it reads and writes for all inputs.
function basisKernels(grid, order) {
  const steps = grid + 2 * order, list = [], kernel = (stage, read, written) => list.push({ stage, read, written });
  for (let k = 0; k < 2; k++) kernel("interval", FLOAT * (INPUTS + steps), INPUTS * steps);          // a comparison, of one byte each
  kernel("interval", 2 * INPUTS * steps, INPUTS * steps);                                            // and
  kernel("interval", INPUTS * steps, FLOAT * INPUTS * steps);                                        // as floats
  for (let d = 1; d <= order; d++) {
    const functions = steps - d, knots = FLOAT * functions, all = INPUTS * knots, stage = `degree ${d}`;
    for (let side = 0; side < 2; side++) {
      kernel(stage, FLOAT * INPUTS + knots, all);                                                    // x less a knot
      kernel(stage, 2 * knots, knots);                                                               // a knot less another
      kernel(stage, all + knots, all);                                                               // their quotient
      kernel(stage, 2 * all, all);                                                                   // times the lower degree
    }
    kernel(stage, 2 * all, all);                                                                     // left plus right
  }
  return list;
}

// Passes, bytes and FLOPs for one input; of the basis, of the basis in one pass, and of the product with the coefficients of 128 outputs.
function costs(grid, order) {
  const kernels = basisKernels(grid, order), count = grid + order;
  let values = 0;
  for (let d = 1; d <= order; d++) values += grid + 2 * order - d;
  const bytes = kernels.reduce((sum, { read, written }) => sum + read + written, 0) / INPUTS, flops = 7 * values;
  return {
    basis: { passes: kernels.length, bytes, flops },
    "one pass": { passes: 1, bytes: FLOAT * (1 + count), flops },
    product: { passes: 1, bytes: FLOAT * (count + WIDTH * count / TOKENS + 1), flops: 2 * WIDTH * count },
  };
}

function draw({ model, el }) {
  const first = { grid: model.get("grid"), order: model.get("order") };
  const put = (values) => { for (const [key, value] of Object.entries(values)) model.set(key, value); model.save_changes(); };
  const within = ([low, high], value) => Math.min(high, Math.max(low, Math.round(value)));
  const orders = Array.from({ length: ORDERS[1] + 1 }, (_, order) => order);
  const bytesAt = (order) => (grid) => costs(grid, order).basis.bytes;        // a straight line in the grid

  const top = new Plot({ x: GRIDS, y: [0, 6800], height: 240, margin: 64, xlabel: "\u2002grid", label: "Bytes that the basis moves for each input, against the grid, for orders 0 to 4" });
  const low = new Plot({ x: [0, 4 + 9 * ORDERS[1]], y: [0, 330], height: 200, margin: 64, xlabel: "\u2002kernel", label: "Bytes for each input that each kernel reads and writes, in their order" });
  top.handle({ name: "order", style: "blue", step: 0, where: () => [model.get("grid"), bytesAt(model.get("order"))(model.get("grid"))],
    says: () => `order ${model.get("order")}, ${Math.round(bytesAt(model.get("order"))(model.get("grid")))} bytes`,
    move: (_, y) => {
      const far = orders.map((order) => Math.abs(bytesAt(order)(model.get("grid")) - y));
      put({ order: far.indexOf(Math.min(...far)) });
    } });
  top.handles[0].knob.addEventListener("keydown", (event) => {      // from curve to curve
    const by = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1 }[event.key];
    if (by) put({ order: within(ORDERS, model.get("order") + by) });
  });
  top.handle({ name: "grid", style: "ink", shape: "rect", along: "x", step: 1, where: () => [model.get("grid"), top.y[0]], says: () => `grid ${model.get("grid")}`,
    move: (x) => put({ grid: within(GRIDS, x) }) });

  const COLUMNS = { passes: "kernels", bytes: "bytes", flops: "FLOPs", intensity: "FLOPs a byte" }, ROWS = { basis: "basis", "one pass": "basis, fused", product: "product" };
  const cells = Object.fromEntries(Object.keys(ROWS).map((row) => [row, Object.fromEntries(Object.keys(COLUMNS).map((key) => [key, readout("", `${key} ${row}`)]))]));
  const table = element("table", { class: "numbers" }, element("thead", {}, element("tr", {}, ...["for each input", ...Object.values(COLUMNS)].map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...Object.entries(ROWS).map(([row, label]) => element("tr", {}, element("th", { scope: "row" }, label), ...Object.values(cells[row]).map(({ node }) => element("td", {}, node))))));
  const shares = { flops: readout("the basis has, of the FLOPs,", "share flops"), bytes: readout("and of the bytes", "share bytes") };
  const chosen = { grid: readout("grid", "grid"), order: readout("order", "order") };
  let stages = [];

  // One bar for each kernel: what it reads, and on top of that what it writes.
  function bars(kernels) {
    const bar = (i, from, to) => `M${low.px(i + 0.12).toFixed(1)} ${low.py(from).toFixed(1)}H${low.px(i + 0.88).toFixed(1)}V${low.py(to).toFixed(1)}H${low.px(i + 0.12).toFixed(1)}Z`;
    const read = kernels.map((kernel) => kernel.read / INPUTS), both = kernels.map((kernel, i) => read[i] + kernel.written / INPUTS);
    low.path("read", "solid blue", true).setAttribute("d", read.map((bytes, i) => bar(i, 0, bytes)).join(""));
    low.path("written", "solid orange", true).setAttribute("d", both.map((bytes, i) => bar(i, read[i], bytes)).join(""));
    const starts = kernels.flatMap(({ stage }, i) => (stage !== kernels[i - 1]?.stage ? [i] : []));
    low.verticals("stages", "ink thin dot-line", starts.slice(1));
    stages.forEach((node) => node.remove());
    stages = starts.map((i, k) => element("text", { class: "tick", x: low.px(i) + 4, y: low.inner.top + 12 }, low.width >= 450 ? kernels[i].stage : k ? `d = ${k}` : ""));
    low.names.append(...stages);
  }

  const redraw = once(() => {
    const { grid, order } = { grid: model.get("grid"), order: model.get("order") }, cost = costs(grid, order);
    for (const k of orders) top.curve(`order ${k}`, k === order ? "blue" : "ink thin", bytesAt(k), `order ${k}`);
    for (const [name, path] of top.curves) path.classList.toggle("strong", name === `order ${order}`);
    top.curve("one pass", "green dash", (x) => costs(x, order)["one pass"].bytes);
    top.verticals("grid", "ink thin dot-line", [grid]);
    top.place();
    bars(basisKernels(grid, order));
    for (const [row, { passes, bytes, flops }] of Object.entries(cost)) {
      const numbers = { passes, bytes, flops, intensity: flops / bytes };
      for (const [key, value] of Object.entries(numbers)) cells[row][key].show(value, key === "intensity" ? digits(value, 2) : Math.round(value).toLocaleString("en-US"));
    }
    for (const key of ["flops", "bytes"]) { const share = cost.basis[key] / (cost.basis[key] + cost.product[key]); shares[key].show(share, `${Math.round(100 * share)}%`); }
    for (const key of ["grid", "order"]) chosen[key].show(model.get(key));
  });

  const row = (...children) => element("div", { class: "strip" }, ...children), swatch = (style) => element("span", { class: `swatch ${style}`, "aria-hidden": "true" });
  const reset = () => put(first), key = (event) => { if (event.key === "r") reset(); };
  const clear = mount(el, "Explorer of what a spline basis costs", [top, low], [
    row(chosen.grid.node, chosen.order.node, button("reset", reset, { title: "key r" })),
    element("div", { class: "title" }, "bytes that the basis moves for each input"), top.node,
    row(element("span", { class: "title" }, "kernel by kernel"), swatch("blue"), "read", swatch("orange"), "written"), low.node,
    element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "kernels, bytes and FLOPs" }, table), row(shares.flops.node, shares.bytes.node),
    element("div", { class: "hint" }, `Counted for ${TOKENS} tokens of ${WIDTH} channels; the product is the one with the coefficients, to ${WIDTH} outputs. Dashed, close to the axis: the basis fused into one kernel.`),
  ], redraw);
  el.addEventListener("keydown", key);
  model.on("change:grid change:order", redraw);
  return () => { clear(); el.removeEventListener("keydown", key); model.off("change:grid change:order", redraw); };
}

const isWhole = (value, [low, high]) => Number.isInteger(value) && value >= low && value <= high;
const render = drawn({ grid: (grid) => isWhole(grid, GRIDS), order: (order) => isWhole(order, ORDERS) }, draw);
export default { render };
