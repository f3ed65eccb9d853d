// SummationExplorer: up to 2^20 terms, added in three orders in a number format of choice, and the digits that each sum loses.
const MOST = 20, COUNT = 2 ** MOST, THREADS = 32;
const single = new Float32Array(1), pattern = new Uint32Array(single.buffer);

// A float32 without its last `count` digits, rounded to the nearest, ties to even.
function shorten(x, count) {
  single[0] = x;
  pattern[0] = (pattern[0] + 2 ** (count - 1) - 1 + (pattern[0] >>> count & 1)) & -(2 ** count);
  return single[0];
}

// Below 2^-14, float16 has a fixed spacing of 2^-24, which is that of doubles around FIXED.
const FIXED = 1.5 * 2 ** 28;
function toFloat16(x) {
  const y = Math.fround(x), near = Math.abs(y) < 2 ** -14 ? y + FIXED - FIXED : shorten(y, 13);
  return Math.abs(near) > 65504 ? Math.sign(near) * Infinity : near;
}

// As PyTorch adds two numbers: in float32, and then rounded to their own format. `digits`: binary digits of a number.
const FORMATS = {
  float32: { digits: 24, round: Math.fround }, bfloat16: { digits: 8, round: (x) => shorten(Math.fround(x), 16) }, float16: { digits: 11, round: toFloat16 },
};

// The terms by name: all 1, even numbers between 0 and 1 by a linear congruential generator, and these less 1/2.
const TERMS = { ones: () => 1, "one sign": (uniform) => uniform, "both signs": (uniform) => uniform - 0.5 };
function makeTerms(kind, round) {
  const terms = new Float32Array(COUNT);
  for (let i = 0, seed = 1; i < COUNT; i++) {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    terms[i] = round(TERMS[kind]((seed >>> 8) / 2 ** 24));
  }
  return terms;
}

// Neighbours in pairs, then the sums in pairs, down to one. Returns for each level its first two numbers: what is added next.
function levels(numbers, round) {
  const first = [];
  for (let now = numbers; ; ) {
    first.push([now[0], now[1]]);
    if (now.length === 1) return first;
    const next = new Float32Array(now.length / 2);
    for (let i = 0; i < next.length; i++) next[i] = round(now[2 * i] + now[2 * i + 1]);
    now = next;
  }
}

// Each order gives for n = 1, 2, 4, ... terms their sum, and one late addition of it: [sum so far, what is added].
const ORDERS = {
  "one by one": (terms, round) => chains(terms, round, 1),
  [`${THREADS} threads`]: (terms, round) => chains(terms, round, THREADS),
  tree: (terms, round) => {
    const first = levels(terms, round);
    return first.map(([sum], k) => ({ sum, addition: k ? first[k - 1] : [0, sum] }));
  },
};

// `count` running sums, which take the terms in turn, and a tree of them.
function chains(terms, round, count) {
  const sums = new Float32Array(count), found = [];
  let addition;
  for (let i = 0; i < terms.length; i++) {
    const before = sums[i % count];
    sums[i % count] = round(before + terms[i]);
    if ((i + 1 & i) === 0) {
      addition = [before, terms[i]];
      found.push({ sum: levels(sums, round).at(-1)[0], addition });
    }
  }
  return found;
}

function exactSums(terms) {
  const found = [];
  let sum = 0, size = 0;
  for (let i = 0; i < terms.length; i++) {
    sum += terms[i];
    size += Math.abs(terms[i]);
    if ((i + 1 & i) === 0) found.push({ sum, size });
  }
  return found;
}

// Of the digits that a format has, how many a sum has right, relative to the sum of the absolute terms.
const rightDigits = (sum, exact, most) => (Number.isFinite(sum) ? Math.max(0, Math.min(most, -Math.log2(Math.abs(sum - exact.sum) / exact.size))) : 0);

// An addition as binary digits in columns: `columns` in all, of which those from `kept` on do not fit into the result.
function inBinary(values, result, most) {
  const exponent = (x) => Math.floor(Math.log2(Math.abs(x))), bits = (x, low) => BigInt(Math.abs(x) / 2 ** low);
  const largest = Math.max(...[...values, result].filter(Number.isFinite).map(Math.abs)) || 1, last = exponent(Number.isFinite(result) && result ? result : largest) - most + 1;
  let low = last;
  while (low > -60 && values.some((x) => x / 2 ** low % 1)) low--;
  const width = exponent(largest) - low + 1, exact = values[0] + values[1];
  let lowest = low;
  while (lowest < last && exact / 2 ** (lowest + 1) % 1 === 0) lowest++;
  return { rows: [...values, result].map((x) => (Number.isFinite(x) ? (x < 0 ? "−" : " ") + (x ? bits(x, low).toString(2) : "0").padStart(width) : " ∞")), kept: width - (last - low) + 1, lost: exact ? last - lowest : 0 };
}

function draw({ model, el }) {
  const KEYS = ["order", "format", "terms", "steps"], first = KEYS.map((key) => [key, model.get(key)]), known = {};
  const put = (pairs) => { for (const [key, value] of pairs) model.set(key, value); model.save_changes(); };
  const at = () => model.get("steps"), format = () => FORMATS[model.get("format")];

  function sums() {                                                 // of all orders, for the terms and the format of now
    const { round } = format(), name = `${model.get("terms")} ${model.get("format")}`;
    if (!known[name]) {
      const terms = makeTerms(model.get("terms"), round);
      known[name] = { exact: exactSums(terms), ...Object.fromEntries(Object.entries(ORDERS).map(([order, add]) => [order, add(terms, round)])) };
    }
    return known[name];
  }

  const rightAt = (order, k) => { const { exact, [order]: found } = sums(); return rightDigits(found[k].sum, exact[k], format().digits); };
  const between = (order) => (x) => { const k = Math.min(MOST - 1, Math.floor(x)), t = x - k; return (1 - t) * rightAt(order, k) + t * rightAt(order, k + 1); };
  const plot = new Plot({ x: [0, MOST], y: [0, 1], height: 250, margin: 84, xlabel: "\u2002log₂ n", label: "Binary digits of the sum that are right, against the number of terms" });
  plot.handle({ name: "n", style: "ink", shape: "rect", along: "x", step: 1, where: () => [at(), plot.y[0]], says: () => `${(2 ** at()).toLocaleString("en-US")} terms`,
    move: (x) => put([["steps", Math.min(MOST, Math.max(0, Math.round(x)))]]) });
  plot.handles[0].knob.querySelector(".name").setAttribute("x", -20);         // on its left, away from the names of the curves

  const out = Object.fromEntries(Object.entries({ n: "n =", sum: "stored sum:", exact: "exact sum:", error: "error:", right: "digits that are right:", lost: "digits that this addition cuts off:" })
    .map(([key, label]) => [key, readout(label, key)]));
  const binary = element("pre", { class: "digits", tabindex: 0, role: "img" }), late = element("div", { class: "title" });
  const STYLES = { "one by one": "orange", [`${THREADS} threads`]: "blue", tree: "green" };

  function write([total, term], stored) {
    const { rows, kept, lost } = inBinary([total, term], stored, format().digits), labels = ["sum so far ", "added      ", "stored     "];
    binary.replaceChildren(...rows.flatMap((digits, i) => [element("span", { class: "label" }, labels[i]), digits.slice(0, kept), element("span", { class: "lost" }, digits.slice(kept).replace(/0+$/, "")), "\n"]));
    binary.setAttribute("aria-label", `sum so far ${total}, added ${term}, stored ${stored}; cut off: ${lost} digits`);
    out.lost.show(lost);
  }

  const redraw = once(() => {
    const order = model.get("order"), k = at(), { exact, [order]: found } = sums(), { digits: most, round } = format(), { sum, addition } = found[k];
    if (plot.y[1] !== 1.08 * most) {
      plot.y = [0, 1.08 * most];                                    // only with the format, never while the handle moves
      plot.layout(plot.width);
    }
    plot.path("limit", "ink thin dash").setAttribute("d", `M${plot.px(0)} ${plot.py(most).toFixed(1)}H${plot.px(MOST)}`);
    for (const name of Object.keys(ORDERS)) plot.curve(name, STYLES[name], between(name), name);
    for (const [name, path] of plot.curves) path.classList.toggle("strong", name === order);
    plot.verticals("n", "ink thin dot-line", [k]);
    plot.place();
    out.n.show(2 ** k, (2 ** k).toLocaleString("en-US"));
    out.sum.show(sum, digits(sum, 9));
    out.exact.show(exact[k].sum, digits(exact[k].sum, 9));
    out.error.show(Math.abs(sum - exact[k].sum) / exact[k].size, Number.isFinite(sum) ? digits(Math.abs(sum - exact[k].sum) / exact[k].size, 2) : "∞, the sum is too large for float16");
    out.right.show(rightAt(order, k), `${rightAt(order, k).toFixed(1)} of ${most}`);
    late.textContent = order === "tree" ? `the last addition of ${2 ** k} terms: two halves` : order === "one by one" ? "the last addition" : "the last addition of a thread";
    write(addition, round(addition[0] + addition[1]));
    for (const [key, nodes] of Object.entries(choices)) nodes.forEach((node) => node.setAttribute("aria-pressed", node.dataset[key] === model.get(key)));
  });

  const row = (...children) => element("div", { class: "strip" }, ...children);
  const choices = Object.fromEntries(Object.entries({ order: ORDERS, format: FORMATS, terms: TERMS }).map(([key, options]) =>
    [key, Object.keys(options).map((name) => button(name, () => put([[key, name]]), { [`data-${key}`]: name }))]));
  const reset = () => put(first), key = (event) => { if (event.key === "r") reset(); };
  const pick = (name, label) => row(element("span", { class: "title" }, label), ...choices[name]);
  const clear = mount(el, "Explorer of sums", [plot], [
    pick("order", "order"), pick("format", "numbers"), row(element("span", { class: "title" }, "terms"), ...choices.terms, button("reset", reset, { title: "key r" })),
    element("div", { class: "title" }, "binary digits of the sum that are right"), plot.node, row(out.n.node, out.sum.node, out.exact.node, out.error.node, out.right.node),
    late, binary, row(out.lost.node),
    element("div", { class: "hint" }, "Errors are relative to the sum of the absolute terms. Dashed: as many digits as the format has."),
  ], redraw);
  el.addEventListener("keydown", key);
  const changes = KEYS.map((name) => `change:${name}`).join(" ");
  model.on(changes, redraw);
  return () => { clear(); el.removeEventListener("keydown", key); model.off(changes, redraw); };
}

const render = drawn({
  order: (name) => Object.hasOwn(ORDERS, name), format: (name) => Object.hasOwn(FORMATS, name), terms: (name) => Object.hasOwn(TERMS, name),
  steps: (k) => Number.isInteger(k) && k >= 0 && k <= MOST,
}, draw);
export default { render };
