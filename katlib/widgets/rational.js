// F = P / Q and what goes with it, in double precision, by the same formulas as katlib.
const horner = (x, c) => c.reduceRight((value, k) => value * x + k, 0);
const slope = (c) => c.slice(1).map((k, i) => (i + 1) * k);

// Q in four versions: "A" 1 + sum |b_j| |x|^j, "B" 1 + |sum b_j x^j|, "signed" 1 + sum |b_j| x^j, "plain" 1 + sum b_j x^j. b holds b_1, b_2, ...
const DENOMINATORS = {
  A: (x, b) => horner(Math.abs(x), [1, ...b.map(Math.abs)]),
  B: (x, b) => 1 + Math.abs(horner(x, [0, ...b])),
  signed: (x, b) => horner(x, [1, ...b.map(Math.abs)]),
  plain: (x, b) => horner(x, [1, ...b]),
};
const SLOPES = {
  A: (x, b) => (x < 0 ? -1 : 1) * horner(Math.abs(x), slope([1, ...b.map(Math.abs)])),
  plain: (x, b) => horner(x, slope([1, ...b])),
};

function rational(x, a, b, version = "A") { return horner(x, a) / DENOMINATORS[version](x, b); }

function derivative(x, a, b, version = "A") {
  const q = DENOMINATORS[version](x, b);
  return horner(x, slope(a)) / q - horner(x, a) * SLOPES[version](x, b) / (q * q);
}

// Where Q is 0 between lo and hi: changes of sign on a fine grid, then bisection.
function poles(b, lo, hi, version = "plain") {
  const q = (x) => DENOMINATORS[version](x, b), found = [], steps = 4000;
  for (let i = 0; i < steps; i++) {
    let left = lo + (hi - lo) * i / steps, right = lo + (hi - lo) * (i + 1) / steps;
    if (q(left) === 0) found.push(left);
    else if (q(left) * q(right) < 0) {
      for (let k = 0; k < 60; k++) { const middle = (left + right) / 2; if (q(left) * q(middle) <= 0) right = middle; else left = middle; }
      found.push((left + right) / 2);
    }
  }
  return found;
}

// The error function, by the series of all positive terms; 1 to the last digit from 6 on.
function erf(x) {
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x, sum = x;
  for (let k = 1; Math.abs(term) > 1e-17 * Math.abs(sum); k++) { term *= 2 * x * x / (2 * k + 1); sum += term; }
  return 2 / Math.sqrt(Math.PI) * Math.exp(-x * x) * sum;
}

const TARGETS = {
  identity: (x) => x, relu: (x) => Math.max(0, x), gelu: (x) => x * (1 + erf(x / Math.SQRT2)) / 2, swish: (x) => x / (1 + Math.exp(-x)), tanh: Math.tanh,
};
const LABELS = { identity: "identity", relu: "ReLU", gelu: "GELU", swish: "swish", tanh: "tanh" };

// What the figures of rational functions allow in their state.
const isPair = ([a, b]) => nested(a, null) && a.length > 0 && nested(b, null);
const areTwins = ([nodes, weights]) => nested(nodes, null) && nested(weights, nodes.length);
const ALLOWED = {
  numerator: (a) => isPair([a, []]), denominator: (b) => nested(b, null), target: (name) => Object.hasOwn(TARGETS, name), interval: isInterval,
  presets: (presets) => presets.every(([name, ...pair]) => typeof name === "string" && isPair(pair)),
};

// The largest |f - target| on 20,001 even points of [lo, hi], as katlib measures it, and where it is.
function largestError(f, target, lo, hi) {
  const key = `${target} ${lo} ${hi}`, count = 20000;
  largestError.values ??= {};
  const values = largestError.values[key] ??= Float64Array.from({ length: count + 1 }, (_, i) => TARGETS[target](lo + (hi - lo) * i / count));
  let worst = 0, place = lo;
  for (let i = 0; i <= count; i++) {
    const x = lo + (hi - lo) * i / count, error = Math.abs(f(x) - values[i]);
    if (!(error <= worst)) { worst = error; place = x; }
    if (!Number.isFinite(error)) return [Infinity, x];
  }
  return [worst, place];
}
