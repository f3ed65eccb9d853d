// A trained Vision Transformer or KAT, computed in the page: katlib/vit.py in plain JavaScript, on Float32Array.
//
// Tokens are (N, C), images (height * width, channels). Matrices stay as PyTorch keeps them, (outputs, inputs), so a product reads both of its factors along
// their rows. Sums run in double precision.

// y (rows, outputs) = x (rows, inputs) W^T + bias, four rows by two outputs at a time: each number that is loaded is then used two or four times.
function linear(x, rows, inputs, weight, bias) {
  const outputs = weight.length / inputs, y = new Float32Array(rows * outputs);
  for (let r = 0; r < rows; r += 4) {
    // where no four rows or two outputs are left, the last ones are computed twice
    const r1 = Math.min(r + 1, rows - 1), r2 = Math.min(r + 2, rows - 1), r3 = Math.min(r + 3, rows - 1);
    const x0 = r * inputs, x1 = r1 * inputs, x2 = r2 * inputs, x3 = r3 * inputs;
    for (let o = 0; o < outputs; o += 2) {
      const p = Math.min(o + 1, outputs - 1), wo = o * inputs, wp = p * inputs;
      let a0 = bias ? bias[o] : 0, b0 = bias ? bias[p] : 0;
      let a1 = a0, a2 = a0, a3 = a0, b1 = b0, b2 = b0, b3 = b0;
      for (let i = 0; i < inputs; i++) {
        const u = weight[wo + i], v = weight[wp + i], t0 = x[x0 + i], t1 = x[x1 + i], t2 = x[x2 + i], t3 = x[x3 + i];
        a0 += t0 * u; a1 += t1 * u; a2 += t2 * u; a3 += t3 * u;
        b0 += t0 * v; b1 += t1 * v; b2 += t2 * v; b3 += t3 * v;
      }
      y[r * outputs + o] = a0; y[r1 * outputs + o] = a1; y[r2 * outputs + o] = a2; y[r3 * outputs + o] = a3;
      y[r * outputs + p] = b0; y[r1 * outputs + p] = b1; y[r2 * outputs + p] = b2; y[r3 * outputs + p] = b3;
    }
  }
  return y;
}

function layerNorm(x, channels, weight, bias) {
  const y = new Float32Array(x.length);
  for (let from = 0; from < x.length; from += channels) {
    let sum = 0, squares = 0;
    for (let c = 0; c < channels; c++) sum += x[from + c];
    const mean = sum / channels;
    for (let c = 0; c < channels; c++) squares += (x[from + c] - mean) ** 2;
    const scale = 1 / Math.sqrt(squares / channels + 1e-6);
    for (let c = 0; c < channels; c++) y[from + c] = (x[from + c] - mean) * scale * weight[c] + bias[c];
  }
  return y;
}

function softmax(x) {
  const greatest = x.reduce((a, b) => Math.max(a, b), -Infinity), powers = x.map((value) => Math.exp(value - greatest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

// The squares of size x size pixels that a convolution sees, a row for each place, as its weights lie: channel, row, column. Beyond the edge are zeros.
function windows(image, side, channels, size, stride, padding) {
  const places = Math.floor((side + 2 * padding - size) / stride) + 1, width = channels * size * size;
  const rows = new Float32Array(places * places * width);
  for (let row = 0, at = 0; row < places; row++) for (let column = 0; column < places; column++) for (let c = 0; c < channels; c++) {
    for (let dy = 0; dy < size; dy++) for (let dx = 0; dx < size; dx++, at++) {
      const y = row * stride + dy - padding, x = column * stride + dx - padding;
      if (y >= 0 && y < side && x >= 0 && x < side) rows[at] = image[(y * side + x) * channels + c];
    }
  }
  return rows;
}

// ReLU, then the greatest of 3 x 3 at every other place: half the side.
function reluMaxPool(image, side, channels) {
  const half = Math.floor((side - 1) / 2) + 1, pooled = new Float32Array(half * half * channels);
  for (let row = 0; row < half; row++) for (let column = 0; column < half; column++) {
    const to = (row * half + column) * channels;
    for (let y = Math.max(0, 2 * row - 1); y <= Math.min(side - 1, 2 * row + 1); y++) {
      for (let x = Math.max(0, 2 * column - 1); x <= Math.min(side - 1, 2 * column + 1); x++) {
        const from = (y * side + x) * channels;
        for (let c = 0; c < channels; c++) if (image[from + c] > pooled[to + c]) pooled[to + c] = image[from + c];
      }
    }
  }
  return pooled;
}

// Half precision as bits, least significant byte first, to single precision.
function fromHalves(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), numbers = new Float32Array(bytes.byteLength / 2);
  for (let i = 0; i < numbers.length; i++) {
    const bits = view.getUint16(2 * i, true), exponent = (bits >> 10) & 31, fraction = bits & 1023;
    const size = exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction;
    numbers[i] = bits & 0x8000 ? -size : size;
  }
  return numbers;
}

// F = P / Q, by Horner's rule, in the columns [from, to) of x (rows, channels); without coefficients, GELU.
function applyFunction(x, y, channels, from, to, pair) {
  const [a, signed] = pair ?? [[], []], b = signed.map(Math.abs), m = a.length - 1, n = b.length;
  for (let row = 0; row < x.length; row += channels) for (let i = row + from; i < row + to; i++) {
    const value = x[i], size = Math.abs(value);
    if (!pair) { y[i] = value * (1 + erf(value / Math.SQRT2)) / 2; continue; }
    let p = a[m], q = n ? b[n - 1] : 0;
    for (let k = m - 1; k >= 0; k--) p = p * value + a[k];
    for (let k = n - 2; k >= 0; k--) q = q * size + b[k];
    y[i] = p / (1 + q * size);
  }
}

// The model. `spec.tensors` names the weights in their order within `bytes`; `spec.functions` has the learned functions, [a, b] for each group, or null for GELU.
//
// A trace is what is kept of one image: the tokens at the entrance of each half of a block (attention, then MLP) and at the end, the attention of each block
// and the inputs of each function. Edits are {coefficients: {"blocks.0.mlp.act1.3": [a, b]}, removed: ["blocks.0.mlp", "blocks.1.attn.2"]}.
class Engine {
  constructor(spec, bytes) {
    const numbers = fromHalves(bytes);
    let from = 0;
    this.spec = spec;
    this.w = Object.fromEntries(spec.tensors.map(([name, size]) => [name, numbers.subarray(from, from += size)]));
  }

  map(name, x, rows, inputs) { return linear(x, rows, inputs, this.w[`${name}.weight`], this.w[`${name}.bias`]); }
  norm(name, x) { return layerNorm(x, this.spec.width, this.w[`${name}.weight`], this.w[`${name}.bias`]); }

  // Pixels (3, side, side) from 0 to 255, normalised, as (places, 3).
  normalised(pixels) {
    const { side, mean, std } = this.spec, image = new Float32Array(pixels.length), places = side * side;
    for (let c = 0; c < 3; c++) for (let i = 0; i < places; i++) image[3 * i + c] = (pixels[c * places + i] / 255 - mean[c]) / std[c];
    return image;
  }

  // Tokens of the image, before the first block.
  embed(pixels) {
    const { side, patch, width, stem } = this.spec, tokens = (side / patch) ** 2;
    let image = this.normalised(pixels);
    if (stem === "patch") image = this.map("patch_embed.proj", windows(image, side, 3, patch, patch, 0), tokens, 3 * patch * patch);
    else for (let layer = 0, length = side, channels = 3; length > side / patch; layer++, length /= 2) {
      const weight = this.w[`patch_embed.conv_layers.${layer}.0.weight`], inputs = 9 * channels;
      const sums = linear(windows(image, length, channels, 3, 1, 1), length * length, inputs, weight, null);
      channels = weight.length / inputs;
      image = reluMaxPool(sums, length, channels);
    }
    const first = this.w.cls_token ?? [], x = Float32Array.from(this.w.pos_embed);
    for (let i = 0; i < x.length; i++) x[i] += i < first.length ? first[i] : image[i - first.length];
    return x;
  }

  begin(pixels) { return { x: [this.embed(pixels)], attention: [], inputs: {}, made: [] }; }

  // The functions of one layer after the edits, one for each group.
  functions(name, { coefficients }) { return this.spec.functions[name].map((pair, group) => coefficients[`${name}.${group}`] ?? pair); }

  // What half a block is computed with: as long as it is the same, so is what comes out.
  madeWith(half, edits) {
    const block = `blocks.${half >> 1}`, isRemoved = (name) => edits.removed.includes(name);
    if (half % 2 === 0) return String(Array.from({ length: this.spec.heads }, (_, head) => isRemoved(`${block}.attn.${head}`)));
    return JSON.stringify(isRemoved(`${block}.mlp`) || this.layers(half >> 1).map((name) => this.functions(name, edits)));
  }

  layers(block) { return Object.keys(this.spec.functions).filter((name) => name.startsWith(`blocks.${block}.`)); }

  // Brings a trace up to date: computes from the first half of a block on that the edits change.
  run(trace, edits) {
    const halves = 2 * this.spec.depth, wanted = Array.from({ length: halves }, (_, half) => this.madeWith(half, edits));
    const changed = wanted.findIndex((text, half) => text !== trace.made[half]);
    for (let half = changed < 0 ? halves : changed; half < halves; half++) {
      trace.x[half + 1] = half % 2 ? this.mlp(half >> 1, trace, edits) : this.attention(half >> 1, trace, edits);
    }
    trace.made = wanted;
    return trace;
  }

  // x + the projection of all heads; keeps the weights, (heads, N, N).
  attention(block, trace, { removed }) {
    const { width, heads } = this.spec, x = trace.x[2 * block], count = x.length / width, size = width / heads, name = `blocks.${block}.attn`;
    const qkv = this.map(`${name}.qkv`, this.norm(`blocks.${block}.norm1`, x), count, width);
    const weights = trace.attention[block] = new Float32Array(heads * count * count), mixed = new Float32Array(x.length);
    const part = (which, head, transposed) => {                     // the queries, keys or values of one head, (N, size)
      const rows = new Float32Array(count * size);
      for (let t = 0; t < count; t++) for (let c = 0; c < size; c++) rows[transposed ? c * count + t : t * size + c] = qkv[t * 3 * width + which * width + head * size + c];
      return rows;
    };
    for (let head = 0; head < heads; head++) {
      if (removed.includes(`${name}.${head}`)) continue;
      const scores = linear(part(0, head), count, size, part(1, head), null);
      const own = weights.subarray(head * count * count, (head + 1) * count * count);
      for (let t = 0; t < count; t++) own.set(softmax(scores.subarray(t * count, (t + 1) * count).map((score) => score / Math.sqrt(size))), t * count);
      const values = linear(own, count, count, part(2, head, true), null);
      for (let t = 0; t < count; t++) mixed.set(values.subarray(t * size, (t + 1) * size), t * width + head * size);
    }
    const change = this.map(`${name}.proj`, mixed, count, width);
    return x.map((value, i) => value + change[i]);
  }

  // x + fc2(F2(fc1(F1(norm(x))))); an ordinary MLP has no F1.
  mlp(block, trace, edits) {
    const { width } = this.spec, x = trace.x[2 * block + 1], count = x.length / width, name = `blocks.${block}.mlp`;
    if (edits.removed.includes(name)) return x;
    let hidden = this.norm(`blocks.${block}.norm2`, x);
    if (this.spec.functions[`${name}.act1`]) hidden = this.activate(`${name}.act1`, hidden, count, trace, edits);
    hidden = this.map(`${name}.fc1`, hidden, count, width);
    hidden = this.activate(this.layers(block).at(-1), hidden, count, trace, edits);
    const change = this.map(`${name}.fc2`, hidden, count, hidden.length / count);
    return x.map((value, i) => value + change[i]);
  }

  activate(name, x, count, trace, edits) {
    const channels = x.length / count, functions = this.functions(name, edits), size = channels / functions.length, y = new Float32Array(x.length);
    trace.inputs[name] = x;
    functions.forEach((pair, group) => applyFunction(x, y, channels, group * size, (group + 1) * size, pair));
    return y;
  }

  // What the model would answer if x (N, C) were its last tokens.
  head(x) {
    const { width } = this.spec, tokens = this.norm("norm", x), count = x.length / width;
    let seen = tokens.subarray(0, width);                           // the class token
    if (this.w["attention_pool.weight"]) {
      const weights = softmax(this.map("attention_pool", tokens, count, width));
      seen = new Float32Array(width);
      for (let t = 0; t < count; t++) for (let c = 0; c < width; c++) seen[c] += weights[t] * tokens[t * width + c];
    }
    return this.map("head", seen, 1, width);
  }

  logits(trace) { return this.head(trace.x[2 * this.spec.depth]); }

  // The probabilities after each block, by the logit lens: its tokens are taken for the last ones.
  lens(trace) { return Array.from({ length: this.spec.depth }, (_, block) => softmax(this.head(trace.x[2 * block + 2]))); }
}

// What is computed beside the shown picture: the logits of all images after the same edits, and of one picture after many. Reports (kind, ticket, index,
// logits), with a pause after each for whatever else waits; a new question of the same kind ends the one before it.
class Jury {
  constructor(spec, bytes, images, report) {
    Object.assign(this, { engine: new Engine(spec, bytes), report, latest: {} });
    this.traces = images.map((pixels) => this.engine.begin(pixels));
  }

  async ask({ kind, ticket, pixels, variants }) {
    this.latest[kind] = ticket;
    const one = pixels && this.engine.begin(pixels), jobs = one ? variants.map((edits) => [one, edits]) : this.traces.map((trace) => [trace, variants[0]]);
    for (let i = 0; i < jobs.length && this.latest[kind] === ticket; i++) {
      this.report({ kind, ticket, index: i, logits: Array.from(this.engine.logits(this.engine.run(...jobs[i]))) });
      await new Promise((go) => { setTimeout(go, 0); });
    }
  }
}

// The code of a worker with a jury, which keeps the page free to move while it computes.
function work() {
  let jury = null;
  self.onmessage = ({ data }) => {
    if (jury) jury.ask(data);
    else jury = new Jury(data.spec, data.bytes, data.images, (answer) => self.postMessage(answer));
  };
}

function startWorker() {
  const parts = [linear, layerNorm, softmax, windows, reluMaxPool, fromHalves, erf, applyFunction, Engine, Jury];
  const address = URL.createObjectURL(new Blob([`${parts.map(String).join("\n")}\n(${work})();`], { type: "text/javascript" }));
  const worker = new Worker(address);
  URL.revokeObjectURL(address);
  return worker;
}

// The bytes that a figure's state holds: a view of them where there is a kernel; in a built page, the name of a script that brings them as base64.
async function bytesOf(value) {
  if (value instanceof DataView) return new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
  globalThis.katlibAssets ??= {};
  if (!katlibAssets[value.name]) await new Promise((resolve, reject) => {
    const script = element("script", { src: value.address, onload: resolve, onerror: () => reject(new Error(`${value.address} cannot be read`)) });
    document.head.append(script);
  });
  return fromBase64(katlibAssets[value.name]);
}

function fromBase64(text) { return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)); }
