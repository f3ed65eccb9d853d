// ReductionExplorer: how the threads of a GPU add up one coefficient's gradient, step by step, in the ladder's stages and in rational.cu.
// The terms are all 1, so each sum is the number of elements that are in it.
const WARP = 32, BLOCK = 256, MOST_PARTS = 65535, MOST_STEPS = 15, MOST_ARROWS = 8;
const ceilDiv = (a, b) => Math.ceil(a / b);
const grouped = (n) => n.toLocaleString("en-US");
const several = (n, thing) => `${grouped(n)} ${thing}${n === 1 ? "" : "s"}`;
// How many of `count` things thread `number` of `threads` gets, if they take them in turn.
const turn = (count, threads, number) => (number < count ? Math.ceil((count - number) / threads) : 0);

// How many elements are loaded at once: at most 16 bytes, if the span allows.
function widthOf({ span, itemsize }) {
  let width = 16 / itemsize;
  while (width > 1 && span % width) width /= 2;
  return width;
}

// As `plan` in katlib/cuda/__init__.py, with the elements of a load (`width`).
function kernelPlan(size) {
  const { rows, groups, span, multiprocessors, kernel_threads } = size, width = widthOf(size), packs = span / width;
  const finished = (tile, lanes, slots, block) => {
    const tiles = ceilDiv(groups, tile), resident = multiprocessors * Math.max(1, Math.floor(kernel_threads / block));
    const parts = Math.max(1, Math.min(Math.floor(resident / tiles), ceilDiv(rows * packs, slots * lanes), MOST_PARTS));
    return { width, packs, tile, lanes, slots, block, parts, flush: width > 4 ? 8 : 32 / width };
  };
  if (packs > BLOCK / 2) return finished(1, BLOCK, 1, BLOCK);
  const tile = ceilDiv(groups, ceilDiv(groups, Math.floor(BLOCK / packs))), columns = tile * packs, most = Math.floor(BLOCK / columns);
  const wholeWarps = (threads) => ceilDiv(threads, WARP) * WARP, busy = (slots) => slots * columns / wholeWarps(slots * columns);
  let slots = most;
  for (let other = most; other > Math.floor(most / 2); other--) if (busy(other) > busy(slots)) slots = other;
  return finished(tile, packs, slots, wholeWarps(slots * columns));
}

// The launch of a stage: how many blocks work on a group, of how many threads, and how many of group 0's elements each thread adds.
function launchOf(stage, size) {
  const { rows, groups, span, multiprocessors, ladder_threads } = size, elements = rows * span;
  if (stage === "rational.cu") {
    const plan = kernelPlan(size), { tile, lanes, slots, block, parts, packs, width } = plan;
    const isOurs = (thread) => thread < slots * tile * lanes && Math.floor(thread / lanes) % tile === 0;
    const number = (part, thread) => (part * slots + Math.floor(thread / (tile * lanes))) * lanes + thread % lanes;
    return { ...plan, isOurs, packsOf: (part, thread) => (isOurs(thread) ? turn(rows * packs, parts * slots * lanes, number(part, thread)) : 0),
      has(part, thread) { return width * this.packsOf(part, thread); } };
  }
  const width = stage.startsWith("stage6") ? widthOf(size) : 1, resident = multiprocessors * Math.floor(ladder_threads / BLOCK), parts = Math.max(1, Math.min(Math.floor(resident / groups), ceilDiv(elements, BLOCK), MOST_PARTS));
  return { width, block: BLOCK, parts, has: (part, thread) => width * turn(elements / width, parts * BLOCK, part * BLOCK + thread) };
}

// All steps of a stage, as one of its blocks sees them. A step has `left`, the sums that are left in the whole GPU after it, and where they are; its
// `additions`, of which some are `atomics`; `chain`, the most additions in it that have to wait for each other; the `values` that the threads hold after
// it; `sources`, from which threads each thread takes what it adds; and whether the threads are those of the second kernel.
function stepsOf(stage, size, part) {
  const launch = launchOf(stage, size), { block, parts } = launch, elements = size.rows * size.span, list = [];
  const threads = Array.from({ length: block }, (_, thread) => thread), zeros = threads.map(() => 0);
  const add = (step) => list.push({ additions: 0, atomics: 0, shared: 0, chain: 0, sources: [], second: false, values: list.at(-1)?.values ?? zeros, ...step });
  const isFirst = stage.startsWith("stage1"), isSecond = stage.startsWith("stage2"), isOurs = stage === "rational.cu";
  const own = threads.map((thread) => launch.has(part, thread)), mostOf = (counts) => counts.reduce((most, count) => Math.max(most, count), 0);
  const blockSums = () => Array.from({ length: parts }, (_, p) => threads.reduce((sum, thread) => sum + launch.has(p, thread), 0));

  add({ title: "start", left: elements, place: "to come, one for each element",
    says: `The threads of ${several(parts, "block")} share the group's elements. Each takes ${several(mostOf(own), "element")} at most.` });
  const atomically = (count, deed, gives) => add({ title: "atomic additions", left: 1, place: "in global memory", additions: count, atomics: count, chain: count, values: zeros, gives,
    says: `${deed} to one number in global memory. Only one can do so at a time: ${several(count, "addition")} in one queue, in any order.` });
  if (isFirst) { atomically(elements, "For each element, a thread adds one term", own); return list; }
  if (isSecond) {
    add({ title: "shared memory", left: parts, place: "in shared memory", additions: elements, shared: elements, chain: mostOf(blockSums()), values: own.map((_, t) => (t ? 0 : blockSums()[part])), gives: own,
      says: `For each element a thread adds one term to the block's sum in shared memory. The ${block} threads stand in one queue.` });
    atomically(parts, "One thread of each block adds its sum", own.map((_, t) => (t ? 0 : 1)));
    return list;
  }

  const fold = (values, half, limit) => values.map((value, t) => (t % limit < half && t < values.length ? value + (values[t + half] ?? 0) : 0));
  const foldSources = (values, half, limit) => values.map((value, t) => (t % limit < half ? [t, t + half] : null));
  // Halves on halves, within teams of `team` threads.
  const shuffles = (team, teams, more, start = list.at(-1).values) => {
    let values = start;
    for (let half = team / 2; half >= 1; half /= 2) {
      const sources = foldSources(values, half, team).map((from, t) => (t < more.active ? from : null));
      values = fold(values, half, team).map((value, t) => (t < more.active ? value : 0));
      add({ title: `shuffle by ${half}`, left: teams * half, place: "in registers", additions: teams * half, chain: 1, values, sources, second: more.second,
        says: `Each lane below ${half} adds the sum of the lane ${half} further on, straight from the other thread's register.` });
    }
  };

  const counts = threads.map((thread) => (isOurs ? launch.packsOf(0, thread) : launch.has(0, thread))), most = mostOf(counts);
  const working = isOurs ? launch.slots * launch.lanes : block;
  add({ title: "registers", left: parts * working, place: "in registers", additions: elements, values: own, alone: true,
    chain: isOurs ? Math.min(most, launch.flush) * launch.width + ceilDiv(most, launch.flush) : most,
    says: isOurs ? `Each thread adds its own terms, ${launch.width} elements for each load. After ${launch.flush} loads it empties its register into its own place in shared memory.`
      : `Each thread adds its own terms in a register${launch.width > 1 ? `, ${launch.width} elements for each load` : ""}. No thread waits for another.` });

  if (stage.startsWith("stage3")) { atomically(parts * block, "Every thread adds its sum", own); return list; }
  if (isOurs) {
    const { tile, lanes, slots } = launch, items = 10 * tile;
    let team = WARP;
    while (team > 1 && items * team > block) team /= 2;
    const ours = threads.filter((thread) => launch.isOurs(thread)), taken = threads.map((t) => (t < team ? ours.filter((from) => from % lanes % team === t) : null));
    add({ title: "teams", left: parts * team, place: "in registers", additions: parts * working, chain: slots * ceilDiv(lanes, team), sources: taken,
      values: taken.map((from) => (from ? from.reduce((sum, t) => sum + own[t], 0) : 0)),
      says: `After a barrier, a team of ${several(team, "thread")} adds up this group's ${several(working, "sum")} in shared memory. Other teams do so for the other coefficients and groups.` });
    shuffles(team, parts, { active: team });
  } else {
    shuffles(WARP, parts * block / WARP, { active: block });
    const firsts = threads.filter((t) => t % WARP === 0), before = list.at(-1).values;
    add({ title: "warps meet", left: parts, place: "in registers", additions: parts * firsts.length, chain: firsts.length, sources: threads.map((t) => (t ? null : firsts)),
      values: threads.map((t) => (t ? 0 : firsts.reduce((sum, from) => sum + before[from], 0))),
      says: `The ${firsts.length} warps' sums go to shared memory, and after a barrier one thread adds them up.` });
    if (stage.startsWith("stage4")) { atomically(parts, "One thread of each block adds its sum", own.map((_, t) => (t ? 0 : 1))); return list; }
  }
  const sums = blockSums(), width = isOurs ? Math.min(BLOCK, ceilDiv(parts, WARP) * WARP) : WARP, warps = width / WARP;
  add({ title: "partial sums", left: parts, place: "in global memory", says: "Each block writes its sum to a place of its own. No block waits for another, and the first kernel ends." });
  const strided = Array.from({ length: width }, (_, t) => sums.reduce((sum, value, p) => (p % width === t ? sum + value : sum), 0));
  add({ title: "second kernel", left: width, place: "in registers", additions: parts, chain: ceilDiv(parts, width), values: strided, second: true, alone: true,
    says: `The ${several(width, "thread")} of the second kernel add up the ${several(parts, "block's sum")}, in float64 and always in the same order.`.replace("block's sums", "blocks' sums") });
  shuffles(WARP, warps, { active: width, second: true });
  if (warps > 1) {
    const firsts = Array.from({ length: warps }, (_, warp) => warp * WARP), before = list.at(-1).values;
    add({ title: "warps meet", left: 1, place: "in a register", additions: warps - 1, chain: warps - 1, sources: [firsts], second: true,
      values: before.map((_, t) => (t ? 0 : firsts.reduce((sum, from) => sum + before[from], 0))), says: `The first thread adds up the ${warps} warps' sums.` });
  }
  return list;
}

// The threads of a block, a row for each warp. `choose` gets the thread that is clicked.
class Threads {
  constructor(choose) {
    this.node = element("svg", { height: 176, "aria-hidden": "true" });
    this.labels = element("g");
    this.cells = Array.from({ length: BLOCK }, (_, thread) => element("rect", { class: "thread", rx: 2, onclick: () => choose(thread) }));
    this.arrows = element("path", { class: "curve thin ink" });
    this.node.append(this.labels, ...this.cells, this.arrows);
  }

  layout(width) {
    this.node.setAttribute("viewBox", `0 0 ${width} 176`);
    this.node.setAttribute("width", width);
    const left = width < 450 ? 22 : 50, size = (width - left - 4) / WARP;
    this.centre = (thread) => [left + (thread % WARP + 0.5) * size, 27 + Math.floor(thread / WARP) * 19];
    this.cells.forEach((cell, thread) => {
      const [x, y] = this.centre(thread);
      for (const [key, value] of Object.entries({ x: x - size / 2 + 1, y: y - 8, width: size - 2, height: 16 })) cell.setAttribute(key, value.toFixed(2));
    });
    const text = (x, y, anchor, words) => this.labels.append(element("text", { x, y, "text-anchor": anchor, class: "tick" }, words));
    this.labels.replaceChildren();
    for (let lane = 0; lane < WARP; lane += 8) text(this.centre(lane)[0], 12, "middle", `${lane ? "" : "lane "}${lane}`);
    for (let warp = 0; warp < BLOCK / WARP; warp++) text(left - 5, this.centre(warp * WARP)[1] + 4, "end", width < 450 ? warp : `warp ${warp}`);
  }

  show(step, thread) {
    const read = new Set(step.sources.flatMap((from) => from ?? []));
    this.cells.forEach((cell, t) => {
      const isThere = t < step.values.length, adds = step.alone ? step.values[t] > 0 : step.sources[t];
      const role = !isThere ? "absent" : adds ? "adds" : read.has(t) || step.gives?.[t] ? "gives" : step.values[t] > 0 ? "holds" : "idle";
      cell.setAttribute("class", `thread ${role}${t === thread ? " chosen" : ""}`);
    });
    const receiver = step.sources[thread] ? thread : step.sources.findIndex((from) => from?.includes(thread));
    // more arrows than these would hide what the colours say
    const from = receiver < 0 || step.sources[receiver].length > MOST_ARROWS ? [] : step.sources[receiver].filter((t) => t !== receiver);
    const [x, y] = receiver < 0 ? [0, 0] : this.centre(receiver);
    this.arrows.setAttribute("d", from.map((t) => { const [u, v] = this.centre(t); return `M${u.toFixed(1)} ${v}Q${((u + x) / 2).toFixed(1)} ${((v + y) / 2 - (v === y ? 22 : 8)).toFixed(1)} ${x.toFixed(1)} ${y}`; }).join(""));
  }
}

function draw({ model, el }) {
  const keys = ["rows", "groups", "span", "itemsize", "multiprocessors", "ladder_threads", "kernel_threads"];
  const size = () => Object.fromEntries(keys.map((key) => [key, model.get(key)]));
  const put = (values) => { for (const [key, value] of Object.entries(values)) model.set(key, value); model.save_changes(); };
  const start = Object.fromEntries(["stage", "step", "rows"].map((key) => [key, model.get(key)]));
  let thread = 0, part = 0, steps = [];

  const within = (value, most) => Math.min(most, Math.max(0, Math.round(value)));
  const go = (step) => put({ step: within(step, steps.length - 1) });
  const now = () => steps[within(model.get("step"), steps.length - 1)];
  const power = (t) => (t === 0 ? "1" : `10${[...String(t)].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit] ?? "").join("")}`);
  const threads = new Threads((chosen) => { thread = Math.min(chosen, now().values.length - 1); redraw(); });
  const plot = new Plot({ x: [0, MOST_STEPS], y: [0, 7], height: 170, xlabel: "", label: "The number of sums that are left after each step", ytick: power });
  plot.handle({ name: "step", style: "blue", along: "x", step: 1, where: () => [within(model.get("step"), steps.length - 1), Math.log10(now().left)],
    says: () => `step ${model.get("step")}, ${now().title}: ${several(now().left, "sum")} left`, move: (x) => go(x) });

  const stages = model.get("stages").map(([name], i) => button(name === "rational.cu" ? name : `stage ${i + 1}`, () => put({ stage: name, step: 0 }), { "data-stage": name }));
  const about = element("span", { class: "title" }), said = element("p", { class: "telling", role: "status" }), who = element("div", { "data-key": "who" });
  const fields = { rows: field("rows", (value) => put({ rows: Math.min(1e7, Math.max(1, Math.round(value))) }), 197), part: field("block", (value) => { part = within(value, parts() - 1); redraw(); }, 1),
    thread: field("thread", (value) => { thread = within(value, now().values.length - 1); redraw(); }, 1) };
  const parts = () => launchOf(model.get("stage"), size()).parts;
  const results = { left: readout("sums left:", "left"), additions: readout("additions in this step:", "additions"), chain: readout("one after the other so far:", "chain"), blocks: readout("blocks for a group:", "blocks"),
    elements: readout("elements in this block's sum:", "elements") };

  // What the chosen thread does in this step.
  function deed(step) {
    const name = `Thread ${thread} (warp ${Math.floor(thread / WARP)}, lane ${thread % WARP})`, from = step.sources[thread], sum = step.values[thread];
    if (from) return `${name} adds ${several(from.length, "sum")}: its sum now has ${several(sum, "element")}.`;
    const receiver = step.sources.findIndex((list) => list?.includes(thread));
    if (receiver >= 0) return `${name} is read by thread ${receiver}.`;
    if (step.gives?.[thread]) return `${name} stands in the queue.`;
    return sum > 0 ? `${name} holds a sum of ${several(sum, "element")}.` : `${name} has nothing to add.`;
  }

  let drawnFor = "";
  const redraw = once(() => {
    const stage = model.get("stage"), key = JSON.stringify([stage, size(), part]);
    part = within(part, parts() - 1);
    if (key !== drawnFor) steps = stepsOf(stage, size(), part);
    drawnFor = key;
    const at = within(model.get("step"), steps.length - 1), step = steps[at], launch = launchOf(stage, size());
    thread = Math.min(thread, step.values.length - 1);
    const top = Math.max(2, Math.ceil(Math.log10(steps[0].left) + 0.2));
    if (plot.y[1] !== top) { plot.y = [0, top]; plot.layout(plot.width); }
    plot.curve("left", "blue", (x) => { const i = Math.floor(x), next = Math.min(i + 1, steps.length - 1); return x > steps.length - 1 ? NaN : Math.log10(steps[i].left) + (x - i) * Math.log10(steps[next].left / steps[i].left); });
    plot.place();
    threads.show(step, thread);
    stages.forEach((node) => node.setAttribute("aria-pressed", node.dataset.stage === stage));
    about.textContent = model.get("stages").find(([name]) => name === stage)[1];
    const words = `Step ${at} of ${steps.length - 1}, ${step.title}. ${step.says}`;
    if (said.textContent !== words) said.textContent = words;
    who.textContent = deed(step);
    results.left.show(step.left, `${grouped(step.left)} ${step.place}`);
    const kind = step.atomics ? ", atomic in global memory" : step.shared ? ", atomic in shared memory" : "";
    results.additions.show(step.additions, `${grouped(step.additions)}${kind}`);
    const chain = steps.slice(0, at + 1).reduce((sum, { chain }) => sum + chain, 0);
    results.chain.show(chain, grouped(chain));
    results.blocks.show(launch.parts, `${grouped(launch.parts)}, of ${launch.block} threads`);
    const sum = Array.from({ length: launch.block }, (_, t) => launch.has(part, t)).reduce((total, count) => total + count, 0);
    results.elements.show(sum, grouped(sum));
    fields.rows.show(model.get("rows"));
    fields.part.show(part);
    fields.thread.show(thread);
    back.disabled = at === 0;
    next.disabled = at === steps.length - 1;
  });

  const back = button("‹ back", () => go(model.get("step") - 1)), next = button("next ›", () => go(model.get("step") + 1));
  const reset = () => { thread = part = 0; put(start); redraw(); };
  const row = (...children) => element("div", { class: "strip" }, ...children), swatch = (style, text) => element("span", { class: "choice" }, element("span", { class: `patch ${style}`, "aria-hidden": "true" }), text);
  steps = stepsOf(model.get("stage"), size(), part);
  const clear = mount(el, "Explorer of the reduction", [threads, plot], [
    row(...stages, button("reset", reset, { title: "key r" })), row(about), row(back, next, fields.rows.node, fields.part.node, fields.thread.node),
    said, threads.node, who, row(swatch("adds", "adds in this step"), swatch("gives", "is read, or waits"), swatch("holds", "holds a sum")),
    row(element("span", { class: "title" }, "sums left after each step")), plot.node, row(results.left.node, results.additions.node), row(results.chain.node, results.blocks.node), row(results.elements.node),
    element("div", { class: "hint" }, "Shown is one of a group's ten sums. Numbers of sums and additions are those of all blocks together."),
  ], redraw);
  const key = (event) => { if (event.key === "r" && event.target.tagName !== "INPUT") reset(); };
  el.addEventListener("keydown", key);
  const changes = "change:stage change:step change:rows";
  model.on(changes, redraw);
  return () => { clear(); el.removeEventListener("keydown", key); model.off(changes, redraw); };
}

const isCount = (value) => Number.isInteger(value) && value > 0;
const render = drawn({
  rows: isCount, groups: isCount, span: isCount, multiprocessors: isCount, ladder_threads: (n) => n >= BLOCK, kernel_threads: isCount, itemsize: (n) => [2, 4].includes(n),
  step: (n) => Number.isInteger(n) && n >= 0, stages: (list) => list.every(([name, words]) => typeof name === "string" && typeof words === "string"),
  stage: (name, model) => model.get("stages").some(([known]) => known === name),
}, draw);
export default { render };
