// The parts of ModelExplorer. Each is {node, update}: what stands in the page, and how it follows a view of the model:
// {index, pixels, label, token, trace, logits, lens, all, edits, chosen, needs, isDrawing}. `act` has what a reader can do.
const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`;
const indexOfLargest = (list) => list.indexOf(Math.max(...list));
const place = (name) => name.match(/\d+|act\d?/g);                  // "blocks.0.mlp.act1.3" -> 0, act1, 3
const layerOf = (name) => name.replace(/\.\d+$/, "");                // "blocks.0.mlp.act1.3" -> "blocks.0.mlp.act1"
const CHOICES = { trained: "as trained", start: "its start", identity: "identity", relu: "ReLU", gelu: "GELU" };

// Moves the choice in a group of radio buttons with the arrow keys.
function arrows(event, nodes, columns) {
  const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  const next = by && nodes[nodes.indexOf(event.target) + by];
  if (by) event.preventDefault();
  next?.click();
  next?.focus({ preventScroll: true });
}

function choose(node, isChosen) {
  node.setAttribute("aria-checked", isChosen);
  node.setAttribute("tabindex", isChosen ? 0 : -1);
}

function canvasOf(side) { return element("canvas", { width: side, height: side, "aria-hidden": "true" }); }

// Draws pixels (3, side, side) in 0 .. 255; `shade(x, y)`, if there is one, says how much orange covers a place of the darkened picture.
function paint(canvas, pixels, shade) {
  const side = canvas.width, places = side * side, context = canvas.getContext("2d"), image = context.createImageData(side, side), cover = [255, 140, 40];
  for (let i = 0; i < places; i++) {
    const share = shade ? shade(i % side, Math.floor(i / side)) : 0;
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = (1 - share) * pixels[c * places + i] * (shade ? 0.55 : 1) + share * cover[c];
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

// ---- which picture

// The centre of a picture of the reader's own, scaled to the model's size: (3, side, side).
async function readPicture(file, side) {
  let source = await createImageBitmap(file), size = Math.min(source.width, source.height), x = (source.width - size) / 2, y = (source.height - size) / 2;
  // in steps of at most two, because for more a browser leaves out pixels; at least one step
  for (let isDone = false; !isDone;) {
    const next = Math.max(side, Math.floor(size / 2)), canvas = canvasOf(next);
    canvas.getContext("2d").drawImage(source, x, y, size, size, 0, 0, next, next);
    [source, size, x, y, isDone] = [canvas, next, 0, 0, next === side];
  }
  const { data } = source.getContext("2d").getImageData(0, 0, side, side);
  return Uint8Array.from({ length: 3 * side * side }, (_, i) => data[4 * (i % (side * side)) + Math.floor(i / (side * side))]);
}

function pictureStrip(spec, images, act) {
  const thumbs = images.map((pixels, index) => {
    const canvas = canvasOf(spec.side);
    paint(canvas, pixels);
    return element("button", { type: "button", role: "radio", class: "thumb", "data-image": index, onclick: () => act.show(index) }, canvas);
  });
  const input = element("input", { type: "file", accept: "image/*", hidden: true, "aria-label": "a picture of your own", onchange: () => input.files[0] && act.read(input.files[0]) });
  const own = button("a picture of your own …", () => input.click()), blank = button("blank", act.blank), pen = button("draw", act.draw, { "aria-pressed": false });
  const colour = element("input", { type: "color", value: "#3c7a2a", "aria-label": "colour to draw with", oninput: () => act.dip(colour.value) });
  const strip = element("div", { class: "thumbs", role: "radiogroup", "aria-label": "test images", onkeydown: (event) => arrows(event, thumbs, thumbs.length) }, ...thumbs);
  return { node: element("div", {}, strip, element("div", { class: "strip controls" }, own, input, blank, pen, colour)),
    update: ({ index, all, isDrawing }) => thumbs.forEach((thumb, i) => {
      pen.setAttribute("aria-pressed", isDrawing);
      const name = spec.classes[spec.labels[i]], answer = spec.classes[indexOfLargest(all[i])], said = answer === name ? "recognised" : `taken for: ${answer}`;
      choose(thumb, i === index);
      if (index === null && i === 0) thumb.setAttribute("tabindex", 0);
      thumb.classList.toggle("wrong", answer !== name);
      thumb.setAttribute("aria-label", `image ${i}, ${name}, ${said}`);
      thumb.setAttribute("title", `${name}, ${said}`);
    }) };
}

// A picture with a disc of a colour "#rrggbb" in it.
function withDisc(pixels, side, x, y, radius, colour) {
  const painted = pixels.slice(), inside = (i) => (i % side + 0.5 - x) ** 2 + (Math.floor(i / side) + 0.5 - y) ** 2 <= radius ** 2;
  for (let c = 0; c < 3; c++) for (let i = 0; i < side * side; i++) if (inside(i)) painted[c * side * side + i] = parseInt(colour.slice(1 + 2 * c, 3 + 2 * c), 16);
  return painted;
}

// ---- the picture and its tokens

function tokenPicture(spec, act) {
  const side = spec.side, cells = side / spec.patch, canvas = canvasOf(side), frame = element("rect", { width: 1, height: 1, class: "token" });
  const lines = Array.from({ length: cells - 1 }, (_, i) => `M${i + 1} 0V${cells}M0 ${i + 1}H${cells}`).join("");
  const grid = element("svg", { viewBox: `0 0 ${cells} ${cells}`, "aria-hidden": "true" }, element("path", { d: lines, class: "cells" }), frame);
  const move = (event) => {
    const box = node.getBoundingClientRect(), x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
    if (isDrawing) { if (event.buttons) act.paint(x * side, y * side, side / 24); return; }
    const cell = (share) => Math.min(cells - 1, Math.max(0, Math.floor(share * cells)));
    act.point(cell(y) * cells + cell(x));
  };
  let token = 0, isDrawing = false;
  const node = element("div", { class: "picture", tabindex: 0, role: "slider", "aria-label": "token of the picture, moved by the arrow keys",
    "aria-valuemin": 0, "aria-valuemax": cells * cells - 1, onpointermove: move, onpointerdown: move,
    onkeydown: (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: cells, ArrowUp: -cells }[event.key];
      if (event.key === " " && isDrawing) { event.preventDefault(); act.paint((token % cells + 0.5) * spec.patch, (Math.floor(token / cells) + 0.5) * spec.patch, spec.patch / 2); }
      if (!by) return;
      event.preventDefault();
      if (token + by >= 0 && token + by < cells * cells) act.point(token + by);
    },
    ondragover: (event) => event.preventDefault(),
    ondrop: (event) => { event.preventDefault(); if (event.dataTransfer.files[0]) act.read(event.dataTransfer.files[0]); } }, canvas, grid);
  let painted = null;
  return { node, update: (view) => {
    ({ token, isDrawing } = view);
    node.classList.toggle("drawing", isDrawing);
    if (painted !== view.pixels) paint(canvas, view.pixels);
    painted = view.pixels;
    frame.setAttribute("x", token % cells);
    frame.setAttribute("y", Math.floor(token / cells));
    node.setAttribute("aria-valuenow", token);
    node.setAttribute("aria-valuetext", `row ${Math.floor(token / cells) + 1}, column ${token % cells + 1}`);
  } };
}

// ---- the probabilities

function bars(spec) {
  const rows = spec.classes.map((name) => {
    const bar = element("span", { class: "bar" }), value = element("output", { "data-key": name });
    return { bar, value, node: element("div", { class: "answer" }, element("span", { class: "class" }, name), element("span", { class: "track" }, bar), value) };
  });
  return { node: element("div", { class: "bars" }, ...rows.map((row) => row.node)), update: ({ logits, label }) => {
    const shares = softmax(logits), best = indexOfLargest(shares);
    rows.forEach(({ bar, value, node: row }, i) => {
      bar.style.width = percent(shares[i]);
      value.value = percent(shares[i]);
      value.dataset.value = logits[i];
      row.classList.toggle("true", i === label);
      row.classList.toggle("best", i === best);
    });
  } };
}

// ---- the blocks: attention of each head, what it answers after each block, and what can be removed

function headTile(spec, block, head, act) {
  const canvas = canvasOf(spec.side), name = `blocks.${block}.attn.${head}`;
  const node = element("button", { type: "button", class: "head", "data-name": name, "aria-label": `remove head ${head} of block ${block}`,
    title: `block ${block}, head ${head}: press to remove`, onclick: () => act.remove(name) }, canvas);
  return { node, update: ({ pixels, token, trace, edits }) => {
    const cells = spec.side / spec.patch, count = cells * cells, classToken = spec.count - count, removed = edits.removed.includes(name);
    node.setAttribute("aria-pressed", removed);
    if (!trace || removed) return paint(canvas, pixels, () => 0);
    const from = (head * spec.count + token + classToken) * spec.count + classToken, weights = trace.attention[block].subarray(from, from + count);
    const most = Math.max(...weights);
    paint(canvas, pixels, (x, y) => 0.85 * weights[Math.floor(y / spec.patch) * cells + Math.floor(x / spec.patch)] / most);
  } };
}

function blockRow(spec, block, act) {
  const heads = Array.from({ length: spec.heads }, (_, head) => headTile(spec, block, head, act)), name = `blocks.${block}.mlp`;
  const mlp = button("MLP", () => act.remove(name), { class: "removable", "data-name": name, "aria-label": `remove the MLP of block ${block}`, title: "press to remove" });
  const answer = element("output", { class: "lens", "data-key": `lens ${block}` });
  return { nodes: [element("span", { class: "lane" }, `block ${block}`), ...heads.map((tile) => tile.node), mlp, answer], update: (view) => {
    heads.forEach((tile) => tile.update(view));
    mlp.setAttribute("aria-pressed", view.edits.removed.includes(name));
    if (!view.lens) return;
    const shares = view.lens[block], best = indexOfLargest(shares);
    answer.value = `${spec.classes[best]} ${percent(shares[best])}`;
    answer.dataset.value = shares[best];
    answer.style.setProperty("--share", percent(shares[best]));
  } };
}

function blockRows(spec, act) {
  const rows = Array.from({ length: spec.depth }, (_, block) => blockRow(spec, block, act));
  const titles = ["head", ...Array.from({ length: spec.heads }, (_, head) => head), "", "would say"].map((text) => element("span", { class: "lane" }, text));
  return { node: element("div", { class: "blocks", style: `--heads: ${spec.heads}` }, ...titles, ...rows.flatMap((row) => row.nodes)),
    update: (view) => rows.forEach((row) => row.update(view)) };
}

// ---- the learned functions

// The function of a name such as "blocks.0.mlp.act1.3", [a, b], or null for GELU: as it was trained, and after the edits.
const trainedPair = (spec, name) => spec.functions[layerOf(name)][+name.match(/\d+$/)[0]];
const trainedPairOrAny = (spec, name) => trainedPair(spec, name) ?? spec.presets.find(([key]) => key === "gelu").slice(1);
const pairOf = (spec, name, edits) => edits.coefficients[name] ?? trainedPair(spec, name);
const valueOf = (pair) => (x) => (pair ? rational(x, ...pair) : TARGETS.gelu(x));
const startOf = (spec, name) => spec.starts[layerOf(name)] ?? spec.presets.find(([preset]) => preset === "identity").slice(1);
const functionNames = (spec) => Object.entries(spec.functions).flatMap(([layer, pairs]) => pairs.map((_, group) => `${layer}.${group}`));

function functionTile(spec, name, act) {
  const path = element("path", { class: "curve blue thin" }), [block, layer, group] = place(name);
  const drawing = element("svg", { viewBox: "0 0 40 28", preserveAspectRatio: "none", "aria-hidden": "true" },
    element("rect", { width: 40, height: 28, class: "heat" }), path);
  const node = element("button", { type: "button", role: "radio", class: "tile", "data-function": name, onclick: () => act.choose(name) }, drawing);
  let drawn;
  return { node, update: ({ edits, chosen, falls }) => {
    node.style.setProperty("--heat", Math.max(0, falls[name] ?? 0) / falls.most);
    const pair = pairOf(spec, name, edits), isEdited = name in edits.coefficients, f = valueOf(pair);
    choose(node, name === chosen);
    if (pair === drawn) return;
    drawn = pair;
    node.classList.toggle("edited", isEdited);
    path.setAttribute("class", `curve ${isEdited ? "orange strong" : "blue thin"}`);
    node.setAttribute("aria-label", `block ${block}, ${layer}, group ${group}${isEdited ? ", changed" : ""}`);
    path.setAttribute("d", `M${Array.from({ length: 25 }, (_, i) => -3 + i / 4).map((x) => `${20 + 6 * x} ${(14 - 4 * f(x)).toFixed(1)}`).join("L")}`);
  } };
}

function functionMap(spec, act) {
  const tiles = functionNames(spec).map((name) => functionTile(spec, name, act)), layers = Object.keys(spec.functions), columns = tiles.length / layers.length;
  const nodes = tiles.map((tile) => tile.node);
  const rows = layers.flatMap((layer, i) => [element("span", { class: "lane" }, place(layer).join(" ")), ...nodes.slice(i * columns, (i + 1) * columns)]);
  const shade = button("which does it need?", act.shade, { "aria-pressed": false }), said = element("span", { class: "hint", role: "status" });
  const map = element("div", { class: "map", role: "radiogroup", "aria-label": "learned functions", style: `--columns: ${columns}`,
    onkeydown: (event) => arrows(event, nodes, columns) }, ...rows);
  const title = element("span", { class: "title" }, "its learned functions, by block and group");
  return { node: element("div", {}, element("div", { class: "strip" }, title, shade, said), map), update: (view) => {
    const falls = fallsOf(view);
    shade.setAttribute("aria-pressed", view.needs !== null);
    if (said.textContent !== needInWords(spec, view, falls)) said.textContent = needInWords(spec, view, falls);
    tiles.forEach((tile) => tile.update({ ...view, falls }));
  } };
}

// By how much the shown class becomes less probable if a function goes back to its start, for those that have been tried; `most`: the largest, at least 1%.
function fallsOf({ needs, logits, label }) {
  const which = label ?? indexOfLargest(logits), now = softmax(logits)[which];
  const falls = Object.fromEntries(Object.entries(needs ?? {}).map(([name, tried]) => [name, now - softmax(tried)[which]]));
  return { ...falls, most: Math.max(0.01, ...Object.values(falls)) };
}

function needInWords(spec, { needs, label, logits }, { most, ...falls }) {
  const names = Object.keys(falls), total = functionNames(spec).length;
  if (needs === null) return "";
  if (names.length < total) return `tried ${names.length} of ${total} …`;
  const name = names.find((key) => falls[key] === most), subject = spec.classes[label ?? indexOfLargest(logits)];
  if (!name) return `For “${subject}” no single function is needed.`;
  const [block, layer, group] = place(name);
  return `For “${subject}” most of all block ${block}, ${layer}, group ${group}: back at its start, the probability falls by ${(100 * most).toFixed(1)} points.`;
}

// ---- the editor of one function

// The polynomial that is 1 at xs[k] and 0 at the other places, by its coefficients.
function lagrange(xs, k) {
  return xs.reduce((polynomial, x, j) => {
    if (j === k) return polynomial;
    const scale = 1 / (xs[k] - x);
    return [0, ...polynomial].map((above, i) => (above - x * (polynomial[i] ?? 0)) * scale);
  }, [1]);
}

// F moved at its handle k, the others at rest: only the numerator changes.
function bent([a, b], xs, k, y) {
  const change = (y - rational(xs[k], a, b)) * DENOMINATORS.A(xs[k], b);
  return [lagrange(xs, k).map((value, i) => a[i] + change * value), b];
}

// Where 98% of a group's inputs lie, at least 2 wide, and their shares in 40 bins of it.
function inputsOf(spec, trace, name) {
  const layer = layerOf(name), group = +place(name).at(-1), x = trace?.inputs[layer];
  if (!x) return { range: [-3, 3], shares: [] };
  const channels = x.length / spec.count, size = channels / spec.functions[layer].length;
  const own = Float32Array.from(x.filter((_, i) => Math.floor(i % channels / size) === group)).sort(), at = (share) => own[Math.floor(share * (own.length - 1))];
  const middle = (at(0.01) + at(0.99)) / 2, half = Math.max(1, (at(0.99) - at(0.01)) / 2), range = [middle - half, middle + half], shares = new Array(40).fill(0);
  for (const value of own) { const bin = Math.floor((value - range[0]) / (2 * half) * 40); if (bin in shares) shares[bin] += 1 / own.length; }
  return { range, shares };
}

function functionEditor(spec, act, model) {
  const lengths = trainedPairOrAny(spec, functionNames(spec)[0]).map((list) => list.length), count = lengths[0];
  const plot = new Plot({ x: [-3, 3], y: [-2, 3], height: 250, margin: 62, label: "The chosen function with handles to bend it" });
  let view = null, xs = [], shares = [], range = [-3, 3];
  const pair = () => pairOf(spec, view.chosen, view.edits) ?? trainedPairOrAny(spec, view.chosen);
  const f = (x) => valueOf(pairOf(spec, view.chosen, view.edits))(x);
  for (let k = 0; k < count; k++) {
    plot.handle({ name: `${k + 1}`, style: "blue", step: 0.05, where: () => [xs[k] ?? 0, view && xs.length ? f(xs[k]) : 0],
      says: () => `F = ${digits(f(xs[k]))} at x = ${digits(xs[k], 3)}`, move: (_, y) => act.edit(view.chosen, bent(pair(), xs, k, y)) });
  }
  const scope = element("select", { "aria-label": "which functions the buttons change" },
    ...[["group", "this function"], ["layer", "its layer"], ["all", "all layers"]].map(([value, text]) => element("option", { value }, text)));
  const offered = ["trained", "start", ...spec.presets.map(([name]) => name)].filter((key) => key !== "start" || Object.values(spec.starts).every(Boolean));
  const choices = offered.map((key) => button(CHOICES[key], () => act.replace(key, scope.value), { "data-choice": key }));
  const fields = ["a", "b"].map((letter, d) => Array.from({ length: lengths[d] }, (_, i) =>
    field(`${letter}${i + d}`, (value) => { const lists = pair().map((list) => [...list]); lists[d][i] = value; act.edit(view.chosen, lists); })));
  const title = element("div", { class: "title" });
  const details = element("details", {}, element("summary", {}, "its coefficients"), element("div", { class: "strip" }, ...fields.flat().map((entry) => entry.node)));
  const node = element("div", {}, title, plot.node,
    element("div", { class: "strip controls" }, element("label", { class: "field" }, "set", scope), "to", ...choices), details);

  // New axes for another function or picture, never while a handle moves.
  function fit(next) {
    view = next;
    ({ range, shares } = inputsOf(spec, view.trace, view.chosen));
    const [lo, hi] = range, pad = 0.12 * (hi - lo), trained = valueOf(trainedPair(spec, view.chosen));
    const values = Array.from({ length: 41 }, (_, i) => lo + (hi - lo) * i / 40).flatMap((x) => [trained(x), f(x)]), least = Math.min(...values), most = Math.max(...values);
    const room = Math.max(0.6, 0.45 * (most - least));
    xs = Array.from({ length: count }, (_, k) => lo + (hi - lo) * (count > 1 ? k / (count - 1) : 0.5));
    plot.x = [lo - pad, hi + pad];
    plot.y = [least - room, most + room];
    plot.layout(plot.width);
    update(view);
  }

  function update(next) {
    view = next;
    if (!xs.length) return fit(next);
    const [block, layer, group] = place(view.chosen), trained = trainedPair(spec, view.chosen), start = spec.starts[layerOf(view.chosen)];
    title.textContent = `block ${block}, ${layer}, group ${group}; shaded: what the picture sends into it`;
    const peak = Math.max(...shares, 1e-9), [lo, hi] = range, heights = shares.map((share) => plot.y[0] + 0.3 * (plot.y[1] - plot.y[0]) * share / peak);
    const px = (i) => plot.px(lo + (hi - lo) * i / 40).toFixed(1), base = plot.py(plot.y[0]).toFixed(1);
    plot.path("inputs", "", true).setAttribute("d", shares.length ? `M${px(0)} ${base}${heights.map((y, i) => `V${plot.py(y).toFixed(1)}H${px(i + 1)}`).join("")}V${base}Z` : "");
    plot.curve("start", "green thin dot-line", start && valueOf(start), "start");
    plot.curve("trained", "ink thin dash", valueOf(trained), "trained");
    plot.curve("now", "blue strong", f, view.chosen in view.edits.coefficients ? "now" : "");
    plot.place();
    pair().forEach((list, d) => list.forEach((value, i) => fields[d][i].show(value)));
  }
  return { node, plot, update, fit };
}

// ---- what changed

const same = (one, other) => one && other && one.every((list, d) => list.every((value, i) => value === other[d][i]));

// What an edited function has become: one of the choices, or its own shape.
function nameOfEdit(spec, name, pair) {
  if (same(pair, spec.starts[layerOf(name)])) return CHOICES.start;
  const preset = spec.presets.find(([, ...known]) => same(pair, known));
  return preset ? CHOICES[preset[0]] : "bent";
}

// The edits in words, those of the same kind in one layer together: [text, the names to take back].
function changesOf(spec, { coefficients, removed }) {
  const edited = functionNames(spec).filter((name) => name in coefficients), kinds = new Map();
  const add = (key, name) => kinds.set(key, [...(kinds.get(key) ?? []), name]);
  const words = new Set(edited.map((name) => nameOfEdit(spec, name, coefficients[name])));
  if (words.size === 1 && edited.length === functionNames(spec).length && edited.length > 1) add(`all functions: ${[...words][0]}`);
  for (const name of edited) {
    const [block, layer] = place(name), all = [...kinds.keys()].find((key) => key.startsWith("all functions"));
    add(all ?? `block ${block}, ${layer}|${nameOfEdit(spec, name, coefficients[name])}`, name);
  }
  const text = (key, names) => {
    if (!key.includes("|")) return key;
    const [where, what] = key.split("|"), groups = names.map((name) => place(name).at(-1)), total = spec.functions[layerOf(names[0])].length;
    return `${where}, ${groups.length === total ? "all groups" : groups.length > 1 ? `groups ${groups.join(", ")}` : `group ${groups[0]}`}: ${what}`;
  };
  const gone = removed.map((name) => { const [block, head] = name.match(/\d+/g); return [`block ${block}, ${head ? `head ${head}` : "MLP"}: removed`, [name]]; });
  return [...[...kinds].map(([key, names]) => [text(key, names.filter(Boolean)), names.filter(Boolean)]), ...gone];
}

function changeList(spec, act) {
  const list = element("ul", { class: "changes", "aria-label": "what is changed" }), link = act.link ? [button("copy a link to this", act.link)] : [];
  let shown = null;
  return { node: element("div", {}, list, element("div", { class: "strip controls" }, ...link)), update: ({ edits }) => {
    const changes = changesOf(spec, edits), text = JSON.stringify(changes);
    if (text === shown) return;
    shown = text;
    const entry = ([words, names]) => element("li", {}, `${words} `, button("undo", () => act.undo(names), { "aria-label": `undo ${words}` }));
    list.replaceChildren(...(changes.length ? changes.map(entry) : [element("li", { class: "hint" }, "nothing is changed")]));
  } };
}

// ---- the verdict, which stays in sight while a reader works further up or down

function verdict(spec, act) {
  const said = element("span", { class: "said", role: "status" }), share = readout("", "share"), right = readout("recognised:", "right");
  const undo = button("undo all", () => act.undo(), { title: "key Escape" });
  const count = (all) => all.filter((logits, i) => indexOfLargest(logits) === spec.labels[i]).length, trained = count(spec.logits);
  return { node: element("div", { class: "strip verdict" }, said, share.node, right.node, undo), update: ({ logits, label, index, all, edits }) => {
    const shares = softmax(logits), best = indexOfLargest(shares), which = label ?? best;
    const text = `says ${spec.classes[best]}${label === null ? "" : best === label ? ", and is right" : `; it is: ${spec.classes[label]}`}`;
    if (said.textContent !== text) said.textContent = text;        // spoken only when the answer changes
    const before = index === null ? "" : ` (was ${percent(softmax(spec.logits[index])[which])})`;
    share.node.firstChild.data = `${spec.classes[which]}: `;
    share.show(shares[which], percent(shares[which]) + before);
    right.show(count(all), `${count(all)} of ${all.length} (was ${trained})`);
    undo.disabled = changesOf(spec, edits).length === 0;
  } };
}

// ---- a link to a state, in the address after #

const MARK = "#kat=";

// The state as text: functions that are one of CHOICES by name, others by their coefficients to six digits.
function toLink(spec, { image, chosen, edits }) {
  const key = (name, pair) => Object.keys(CHOICES).find((choice) => CHOICES[choice] === nameOfEdit(spec, name, pair)), short = (value) => +value.toPrecision(6);
  const coefficients = Object.entries(edits.coefficients).map(([name, pair]) => [name, key(name, pair) ?? pair.map((list) => list.map(short))]);
  return MARK + encodeURIComponent(JSON.stringify({ image, function: chosen, coefficients: Object.fromEntries(coefficients), removed: edits.removed }));
}

// What a link says, or null if it is none or does not fit the model.
function fromLink(spec, hash) {
  try {
    if (!hash.startsWith(MARK)) return null;
    const said = JSON.parse(decodeURIComponent(hash.slice(MARK.length))), names = functionNames(spec);
    const known = { start: (name) => startOf(spec, name), ...Object.fromEntries(spec.presets.map(([key, ...pair]) => [key, () => pair])) };
    const pair = (name, value) => (typeof value === "string" ? known[value](name) : value), lengths = (trainedPairOrAny(spec, names[0])).map((list) => list.length);
    const coefficients = Object.fromEntries(Object.entries(said.coefficients).map(([name, value]) => [name, pair(name, value)]));
    const isRight = said.image in spec.labels && [said.function, ...Object.keys(coefficients)].every((name) => names.includes(name))
      && Object.values(coefficients).every(([a, b]) => nested(a, lengths[0]) && nested(b, lengths[1])) && said.removed.every((name) => removable(spec).includes(name));
    return isRight ? { image: said.image, function: said.function, coefficients, removed: said.removed } : null;
  } catch { return null; }
}

function removable(spec) {
  return Array.from({ length: spec.depth }, (_, block) => [`blocks.${block}.mlp`, ...Array.from({ length: spec.heads }, (_, head) => `blocks.${block}.attn.${head}`)]).flat();
}
