// ModelExplorer: a whole trained KAT, computed in the page (model_engine.js), its parts (model_parts.js), and what joins them.

// Asks a jury, in a worker, or on the page where it may not start one: `ask(kind, variants, pixels)`. Only answers to the latest question of a kind are heard.
function summon(spec, bytes, images, hear) {
  const latest = {}, report = (answer) => { if (latest[answer.kind] === answer.ticket) hear(answer); };
  let tickets = 0, worker = null, jury = null;
  try {
    worker = startWorker();
    worker.onmessage = ({ data }) => report(data);
    worker.postMessage({ spec, bytes, images });
  } catch { jury = new Jury(spec, bytes, images, report); }
  return {
    ask: (kind, variants, pixels) => {
      latest[kind] = tickets += 1;
      const question = { kind, ticket: tickets, variants, pixels };
      if (jury) jury.ask(question); else worker.postMessage(question);
    },
    stop: () => { for (const kind of Object.keys(latest)) latest[kind] = 0; worker?.terminate(); },
  };
}

async function draw({ model, el }) {
  const spec = JSON.parse(model.get("spec")), length = 3 * spec.side ** 2, pixels = fromBase64(model.get("pictures"));
  const images = spec.labels.map((_, i) => pixels.slice(i * length, (i + 1) * length)), cells = spec.side / spec.patch;
  spec.count = Object.fromEntries(spec.tensors).pos_embed / spec.width;
  const all = spec.logits.map((row) => row);                        // of all images, as far as they are known
  let engine = null, jury = null, own = null, trace = null, token = Math.floor(cells / 2) * (cells + 1), waiting = null, isShaded = false, needs = {};
  let isDrawing = false, colour = "#3c7a2a";

  const edits = () => ({ coefficients: model.get("coefficients"), removed: model.get("removed") });
  const put = (values) => { for (const [key, value] of Object.entries(values)) model.set(key, value); model.save_changes(); };
  const act = {
    show: (image) => { own = null; put({ image }); begin(); },
    blank: () => { own = new Uint8Array(length).fill(200); begin(); },
    draw: () => { isDrawing = !isDrawing; redraw(); },
    dip: (chosen) => { colour = chosen; isDrawing = true; redraw(); },
    paint: (x, y, radius) => { own = withDisc(shown(), spec.side, x, y, radius, colour); begin(); },
    read: async (file) => { try { own = await readPicture(file, spec.side); begin(); } catch { say("This file is no picture that the browser can read."); } },
    point: (at) => { token = at; redraw(); },
    choose: (name) => put({ function: name }),
    remove: (name) => put({ removed: model.get("removed").includes(name) ? model.get("removed").filter((other) => other !== name) : [...model.get("removed"), name].sort() }),
    shade: () => { isShaded = !isShaded; ask(); redraw(); },
    edit: (name, pair) => put({ coefficients: { ...model.get("coefficients"), [name]: pair } }),
    replace: (key, scope) => put({ coefficients: replaced(key, scope) }),
    undo: (names) => put({ coefficients: Object.fromEntries(Object.entries(model.get("coefficients")).filter(([name]) => names && !names.includes(name))),
      removed: model.get("removed").filter((name) => names && !names.includes(name)) }),
  };

  // In a built page the address can hold the state; a notebook has its own.
  if (el.closest(".live-place")) {
    act.link = () => {
      history.replaceState(null, "", toLink(spec, { image: model.get("image"), chosen: model.get("function"), edits: edits() }));
      navigator.clipboard?.writeText(location.href).catch(() => {});
      say("The address of this page now holds what you see.");
    };
    const linked = fromLink(spec, location.hash);
    if (linked) put(linked);
  }

  // The edits after the functions of a group, a layer or all were set to one of CHOICES.
  function replaced(key, scope) {
    const chosen = model.get("function"), coefficients = { ...model.get("coefficients") };
    for (const name of functionNames(spec)) {
      if (!(scope === "all" || layerOf(name) === layerOf(chosen) && (scope === "layer" || name === chosen))) continue;
      if (key === "trained") delete coefficients[name];
      else coefficients[name] = key === "start" ? spec.starts[layerOf(name)] : spec.presets.find(([preset]) => preset === key).slice(1);
    }
    return coefficients;
  }

  const shown = () => own ?? images[model.get("image")];
  function view() {
    const index = own ? null : model.get("image");
    if (engine && trace === null) trace = engine.begin(shown());
    if (engine) engine.run(trace, edits());
    const logits = engine ? Array.from(engine.logits(trace)) : all[index];
    if (index !== null) all[index] = logits;
    return { index, pixels: shown(), label: own ? null : spec.labels[index], token, trace, logits, lens: engine && engine.lens(trace), all, edits: edits(),
      chosen: model.get("function"), needs: isShaded ? needs : null, isDrawing };
  }

  const status = element("p", { class: "hint status", role: "status" }, "The weights are loading …"), say = (text) => { status.textContent = text; };
  const strip = pictureStrip(spec, images, act), picture = tokenPicture(spec, act), shares = bars(spec), blocks = blockRows(spec, act);
  const map = functionMap(spec, act), editor = functionEditor(spec, act), changes = changeList(spec, act), result = verdict(spec, act);
  const parts = [strip, picture, shares, blocks, map, editor, changes, result];
  const redraw = once(() => { const now = view(); parts.forEach((part) => part.update(now)); });
  const refit = once(() => { const now = view(); parts.forEach((part) => part.update(now)); editor.fit(now); });
  const begin = () => { trace = null; refit(); retry(); };

  // Asks for all images and, if the functions are to be shaded, for the shown picture with each function in turn back at its start.
  function ask() {
    jury?.ask("all", [edits()]);
    needs = {};
    if (isShaded) jury?.ask("need", functionNames(spec).map((name) => ({ ...edits(), coefficients: { ...edits().coefficients, [name]: startOf(spec, name) } })), shown());
  }

  function hear({ kind, index, logits }) {
    if (kind === "all") all[index] = logits;
    else needs[functionNames(spec)[index]] = logits;
    redraw();
  }

  // While a handle moves, only the shown picture is computed; the rest follows when it stops.
  function retry() {
    redraw();
    clearTimeout(waiting);
    waiting = setTimeout(ask, 80);
  }

  const title = (text) => element("div", { class: "title" }, text);
  const clear = mount(el, "Explorer of a whole trained model", [editor.plot], [
    strip.node, element("div", { class: "duo" }, picture.node, shares.node), status,
    title("block by block: where the marked token looks, and what the model would say"), blocks.node,
    map.node, editor.node, changes.node, result.node,
  ], redraw);
  try {
    const bytes = await bytesOf(model.get("weights"));
    engine = new Engine(spec, bytes);
    jury = summon(spec, bytes, images, hear);
    say("");
    begin();
  } catch (error) { say(`The weights could not be loaded (${error.message}). The figure shows what the model says of its test images.`); }

  const key = (event) => { if (event.key === "Escape") act.undo(); };
  el.addEventListener("keydown", key);
  model.on("change:coefficients change:removed", retry);
  model.on("change:image", begin);
  model.on("change:function", refit);
  return () => {
    clear();
    jury?.stop();
    clearTimeout(waiting);
    el.removeEventListener("keydown", key);
    model.off("change:coefficients change:removed", retry);
    model.off("change:image", begin);
    model.off("change:function", refit);
  };
}

// What the state may be.
const isFunction = (pair) => pair === null || isPair(pair);
function isSpec(text) {
  const { side, patch, width, depth, heads, mean, std, classes, labels, logits, functions, presets } = JSON.parse(text);
  return [side / patch, width / heads, depth].every((count) => Number.isInteger(count) && count > 0) && nested(mean, 3) && nested(std, 3)
    && nested(logits, labels.length, classes.length) && labels.every((label) => label in classes) && ALLOWED.presets(presets)
    && Object.values(functions).every((pairs) => pairs.length > 0 && pairs.every(isFunction));
}
const specOf = (model) => JSON.parse(model.get("spec"));
const render = drawn({
  spec: isSpec, pictures: (text, model) => atob(text).length === specOf(model).labels.length * 3 * specOf(model).side ** 2,
  weights: (value) => value instanceof DataView || typeof value.name === "string",
  image: (image, model) => image in specOf(model).labels, function: (name, model) => functionNames(specOf(model)).includes(name),
  coefficients: (edits) => Object.values(edits).every(isPair), removed: (names) => names.every((name) => typeof name === "string"),
}, draw);
export default { render };
