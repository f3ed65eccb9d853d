// PadeExplorer: Taylor polynomial and Padé approximant of one function, on the real line and in the complex plane.
const SPAN = 7.5, REACH = 14.5, NUMERATOR = [1, 8], DENOMINATOR = [0, 6];

// ---- exact fractions [p, q] of big integers: some systems have no solution, which rounding would hide
const gcd = (a, b) => { while (b) [a, b] = [b, a % b]; return a < 0n ? -a : a; };
function fraction(p, q = 1n) { const common = gcd(p, q) * (q < 0n ? -1n : 1n); return [p / common, q / common]; }
const plus = ([a, b], [c, d]) => fraction(a * d + c * b, b * d);
const minus = (x, [c, d]) => plus(x, [-c, d]);
const product = ([a, b], [c, d]) => fraction(a * c, b * d);
const quotient = (x, [c, d]) => product(x, [d, c]);
const bits = (integer) => integer.toString(2).length;
function toNumber([p, q]) { const shift = Math.max(0, bits(q) - bits(p) + 70); return Number((p << BigInt(shift)) / q) / 2 ** shift; }

// ---- Taylor series at 0
const COUNT = NUMERATOR[1] + DENOMINATOR[1] + 1, ZERO = [0n, 1n], ONE = [1n, 1n];
const factorial = (k) => (k < 2 ? 1n : BigInt(k) * factorial(k - 1));
const series = (term) => Array.from({ length: COUNT }, (_, k) => term(k));
// the coefficients of p / q, from those of p and q
function divided(p, q) {
  const c = [];
  p.forEach((entry, k) => c.push(quotient(c.reduce((rest, known, i) => minus(rest, product(known, q[k - i])), entry), q[0])));
  return c;
}
const exponential = series((k) => fraction(1n, factorial(k)));
const alternating = exponential.map(([p, q], k) => [k % 2 ? -p : p, q]);
const half = (sign) => exponential.map((value, k) => quotient(plus(value, product([sign, 1n], alternating[k])), [2n, 1n]));
const ROOT = fraction(398942280401432677939946059934n, 10n ** 30n);   // 1 / sqrt(2 pi)
const cumulative = (k) => (k % 2 ? product(ROOT, fraction(k % 4 === 1 ? 1n : -1n, 2n ** BigInt((k - 1) / 2) * factorial((k - 1) / 2) * BigInt(k))) : k ? ZERO : [1n, 2n]);

// Each function with its series; its poles, if any, are the odd multiples of `pole` times i.
const FUNCTIONS = {
  swish: { f: TARGETS.swish, c: divided(series((k) => (k === 1 ? ONE : ZERO)), alternating.map((value, k) => (k ? value : [2n, 1n]))), pole: Math.PI },
  tanh: { f: Math.tanh, c: divided(half(-1n), half(1n)), pole: Math.PI / 2 },
  gelu: { f: TARGETS.gelu, c: series((k) => (k ? cumulative(k - 1) : ZERO)) },
  exp: { f: Math.exp, c: exponential },
};
const NAMES = { ...LABELS, exp: "exp x" };

// ---- Padé

// Solves a linear system of fractions by elimination; null if it is singular.
function solve(rows, right) {
  const table = rows.map((row, i) => [...row, right[i]]), n = rows.length;
  for (let k = 0; k < n; k++) {
    const pivot = table.findIndex((row, i) => i >= k && row[k][0] !== 0n);
    if (pivot < 0) return null;
    [table[k], table[pivot]] = [table[pivot], table[k]];
    for (let i = 0; i < n; i++) {
      if (i === k || table[i][k][0] === 0n) continue;
      const factor = quotient(table[i][k], table[k][k]);
      table[i] = table[i].map((entry, j) => (j < k ? entry : minus(entry, product(factor, table[k][j]))));
    }
  }
  return table.map((row, k) => quotient(row[n], row[k]));
}

// The ratio with the series c up to x^(m + n). Where these degrees have none of their own, it is that of (m - 1, n - 1), or of less still.
function pade(c, m, n) {
  const at = (k) => (k < 0 ? ZERO : c[k]), range = (length, f) => Array.from({ length }, (_, i) => f(i));
  const b = solve(range(n, (i) => range(n, (j) => at(m + i - j))), range(n, (i) => minus(ZERO, at(m + 1 + i))));
  if (!b) return pade(c, m - 1, n - 1);
  const a = range(m + 1, (k) => b.reduce((sum, entry, j) => plus(sum, product(entry, at(k - 1 - j))), at(k)));
  return { a: a.map(toNumber), b: b.map(toNumber), degrees: [m, n] };
}

// The zeros [re, im] of 1 + b_1 x + ... + b_n x^n, the nearest to 0 first, all at once by the iteration of Durand and Kerner.
function zeros(b) {
  const c = [1, ...b];
  while (c[c.length - 1] === 0) c.pop();
  const n = c.length - 1, size = Math.abs(1 / c[n]) ** (1 / n), monic = c.map((value, k) => value * size ** k / (c[n] * size ** n));
  const times = ([a, b], [c, d]) => [a * c - b * d, a * d + b * c], over = (x, [c, d]) => times(x, [c / (c * c + d * d), -d / (c * c + d * d)]);
  let z = Array.from({ length: n }, (_, i) => [Math.cos(0.4 + 2 * Math.PI * i / n), Math.sin(0.4 + 2 * Math.PI * i / n)]);
  for (let step = 0; step < 300; step++) z = z.map((x, i) => {
    const value = monic.reduceRight(([re, im], k) => { const [a, b] = times([re, im], x); return [a + k, b]; }, [0, 0]);
    const apart = z.reduce((all, other, j) => (i === j ? all : times(all, [x[0] - other[0], x[1] - other[1]])), [1, 0]);
    const [re, im] = over(value, apart);
    return [x[0] - re, x[1] - im];
  });
  return z.map(([re, im]) => [re * size, im * size]).sort(([a, b], [c, d]) => Math.hypot(a, b) - Math.hypot(c, d) || b - d);
}

// A zero or a pair of conjugate ones as text; of a pair, the upper one stands for both.
function said(found) {
  const tiny = (value, scale) => Math.abs(value) < 1e-8 * scale;
  return found.flatMap(([re, im]) => {
    const scale = Math.hypot(re, im), real = tiny(re, scale) ? "" : digits(re);
    return tiny(im, scale) ? [real] : im < 0 ? [] : [`${real && `${real} `}± ${digits(im)} i`];
  }).join(", ");
}

// ---- the figure

// A part of the complex plane, with one unit as long upwards as it is sideways.
class Plane extends Plot {
  layout(width) {
    this.width = width;
    const { left, right, top, bottom } = this.inner, reach = (right - left) / (bottom - top) * this.y[1];
    this.x = [-reach, reach];
    super.layout(width);
  }

  get unit() { return this.px(1) - this.px(0); }
  circle(x, y, radius) { return `M${this.px(x) - radius} ${this.py(y)}a${radius} ${radius} 0 1 0 ${2 * radius} 0a${radius} ${radius} 0 1 0 ${-2 * radius} 0`; }
  cross(x, y) { return `M${this.px(x) - 5} ${this.py(y) - 5}l10 10m0 -10l-10 10`; }
}

function draw({ model, el }) {
  const first = { degrees: [...model.get("degrees")], target: model.get("target") };
  let probe = 4;
  const put = (key, value) => { model.set(key, value); model.save_changes(); };
  const top = new Plot({ x: [-SPAN, SPAN], y: [-3, 7], height: 280, label: "The function, its Taylor polynomial and its Padé approximant on the real line" });
  const plane = new Plane({ x: [-1, 1], y: [-REACH, REACH], height: 330, xlabel: "Re", label: "The complex plane with the disc of convergence and the poles" });
  top.handle({ name: "x", style: "ink", shape: "rect", along: "x", step: 0.1, where: () => [probe, top.y[0]], says: () => `x = ${digits(probe)}`,
    move: (x) => { probe = Math.min(SPAN, Math.max(-SPAN, x)); redraw(); } });

  const slider = (index, label, [min, max]) => {
    const input = element("input", { type: "range", min, max, "aria-label": label, oninput: () => put("degrees", model.get("degrees").map((old, i) => (i === index ? input.valueAsNumber : old))) });
    const output = element("output", { "data-key": "mn"[index] });
    return { node: element("label", { class: "field" }, label, input, output), show: (value) => { input.value = value; output.value = value; output.dataset.value = value; } };
  };
  const sliders = [slider(0, "degree of P", NUMERATOR), slider(1, "degree of Q", DENOMINATOR)];
  const choice = element("select", { "aria-label": "function", onchange: () => put("target", choice.value) }, ...Object.keys(FUNCTIONS).map((name) => element("option", { value: name }, NAMES[name])));
  const results = { count: readout("coefficients of each:", "count"), radius: readout("the series converges for |x| <", "radius"), x: readout("at x =", "x"),
    ratio: readout("the ratio is off by", "ratio"), taylor: readout("the polynomial by", "taylor"), poles: readout("poles of the ratio:", "poles") };
  const note = element("span", { class: "hint", role: "status" });

  const redraw = once(() => {
    const [m, n] = model.get("degrees"), name = model.get("target"), { f, c, pole } = FUNCTIONS[name], radius = pole ?? Infinity;
    const { a, b, degrees } = pade(c, m, n), taylor = c.slice(0, m + n + 1).map(toNumber), found = zeros(b), ratio = (x) => rational(x, a, b, "plain");
    const own = pole ? Array.from({ length: 12 }, (_, k) => [0, (2 * k - 11) * pole]) : [];
    top.verticals("disc", "pink thin dash", pole ? [-pole, pole] : []);
    top.curve("Taylor", "orange", (x) => horner(x, taylor));
    top.curve("target", "ink wide", f);
    top.curve("ratio", "blue", ratio);
    top.place();
    plane.path("disc", "", true).setAttribute("d", pole ? plane.circle(0, 0, radius * plane.unit) : "");
    plane.path("edge", "pink thin dash").setAttribute("d", pole ? plane.circle(0, 0, radius * plane.unit) : "");
    plane.path("own", "ink thin").setAttribute("d", own.map(([x, y]) => plane.circle(x, y, 8)).join(""));
    plane.path("poles", "blue").setAttribute("d", found.map(([x, y]) => plane.cross(x, y)).join(""));
    results.count.show(JSON.stringify([a, b]), m + n + 1);
    results.radius.show(radius);
    results.x.show(probe);
    results.ratio.show(ratio(probe) - f(probe), digits(ratio(probe) - f(probe), 2));
    results.taylor.show(horner(probe, taylor) - f(probe), digits(horner(probe, taylor) - f(probe), 2));
    results.poles.show(JSON.stringify(found), said(found) || "none");
    note.textContent = degrees[0] === m ? "" : `Degrees (${m}, ${n}) have no ratio of their own here. This is that of (${degrees.join(", ")}).`;
    [m, n].forEach((value, i) => sliders[i].show(value));
    choice.value = name;
  });

  const row = (...children) => element("div", { class: "strip" }, ...children);
  const swatch = (style, text) => element("span", { class: "choice" }, element("span", { class: `swatch ${style}`, "aria-hidden": "true" }), text);
  const reset = () => { probe = 4; model.set("degrees", [...first.degrees]); put("target", first.target); redraw(); };
  const clear = mount(el, "Explorer of Padé approximants", [top, plane], [
    element("div", { class: "strip controls" }, element("label", { class: "field" }, "function", choice), ...sliders.map(({ node }) => node), button("reset", reset, { title: "key r" })),
    row(swatch("ink wide", "function"), swatch("blue", "ratio P / Q"), swatch("orange", "Taylor polynomial"), results.count.node), note,
    top.node, row(results.x.node, results.ratio.node, results.taylor.node), plane.node, row(results.radius.node, results.poles.node),
    element("div", { class: "hint" }, "In the plane: shaded, where the series converges; rings, poles of the function; crosses, poles of the ratio."),
  ], redraw);
  const key = (event) => { if (event.key === "r" && event.target.tagName !== "SELECT") reset(); };
  el.addEventListener("keydown", key);
  model.on("change:degrees change:target", redraw);
  return () => { clear(); el.removeEventListener("keydown", key); model.off("change:degrees change:target", redraw); };
}

const isDegree = (value, [low, high]) => Number.isInteger(value) && value >= low && value <= high;
const render = drawn({
  degrees: (degrees) => nested(degrees, 2) && isDegree(degrees[0], NUMERATOR) && isDegree(degrees[1], DENOMINATOR), target: (name) => Object.hasOwn(FUNCTIONS, name),
}, draw);
export default { render };
