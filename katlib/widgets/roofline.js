// RooflineExplorer: a kernel by the bytes and the instructions of an element, a GPU, and which of its limits binds.
const MOST_BYTES = 16, MOST_INSTRUCTIONS = 120;
const LIMITS = { memory: "memory", issue: "instructions", arithmetic: "float32 arithmetic" };

// The least time for an element by each limit, in picoseconds: as `Chip.load` in katlib/book/cost.py, before it divides.
function timesOf(chip, { bytes, instructions, share }) {
  return { memory: 1e12 * bytes / chip.bandwidth, issue: 1e12 * instructions / chip.issue, arithmetic: 1e12 * share * instructions / chip.arithmetic };
}
// Instructions a second that a GPU reaches if so large a share of them is float32 arithmetic.
const ceiling = (chip, share) => Math.min(chip.issue, chip.arithmetic / share);

function draw({ model, el }) {
  const chips = Object.fromEntries(model.get("chips").map(([name, issue, arithmetic, bandwidth]) => [name, { name, issue, arithmetic, bandwidth }]));
  const traits = ["bytes", "instructions", "share", "chip"], state = () => Object.fromEntries(traits.map((key) => [key, model.get(key)]));
  const put = (values) => { for (const [key, value] of Object.entries(values)) model.set(key, value); model.save_changes(); };
  const start = state(), clamp = (value, least, most) => Math.min(most, Math.max(least, value));
  const move = (bytes, instructions) => put({ bytes: clamp(bytes, 0.25, MOST_BYTES), instructions: clamp(instructions, 0.5, MOST_INSTRUCTIONS) });

  const power = (t) => (!Number.isInteger(t) ? "" : t < 3 ? digits(10 ** t) : `10${[...String(t)].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join("")}`);
  const plane = new Plot({ x: [0, MOST_BYTES], y: [0, MOST_INSTRUCTIONS], height: 300, margin: 48, xlabel: "", label: "Bytes and instructions of an element, with a handle for the kernel" });
  plane.handle({ name: "kernel", style: "orange", along: "both", step: [0.25, 1], where: () => [state().bytes, state().instructions], move,
    says: () => `${digits(state().bytes)} bytes and ${digits(state().instructions)} instructions an element: ${LIMITS[limit()]} binds` });
  const roof = new Plot({ x: [-1, 3], y: [10, 14], height: 200, margin: 48, xlabel: "", xtick: power, ytick: power, label: "The roofline" });
  const spot = element("circle", { r: 6, class: "dot orange" });
  roof.body.append(spot);

  const limit = () => Object.entries(timesOf(chips[state().chip], state())).reduce((longest, entry) => (entry[1] > longest[1] ? entry : longest))[0];
  const names = Object.keys(chips).map((name) => button(name, () => put({ chip: name }), { "data-chip": name }));
  const kernels = model.get("kernels").map(([name, bytes, instructions, share]) => button(name, () => put({ bytes, instructions, share }), { "data-kernel": name }));
  const fields = { bytes: field("bytes", (value) => move(value, state().instructions), 0.25), instructions: field("instructions", (value) => move(state().bytes, value), 1),
    share: field("share that is float32 arithmetic", (value) => put({ share: clamp(value, 0.01, 1) }), 0.05) };
  fields.share.node.querySelector("input").style.width = "108px";  // its numbers have no end
  const results = { memory: readout("memory:", "memory"), issue: readout("instructions:", "issue"), arithmetic: readout("float32 arithmetic:", "arithmetic"), limit: readout("what binds:", "limit"),
    load: readout("computing takes", "load"), room: readout("room for", "room"), rate: readout("at most", "rate") };
  const sides = [["below", "memory binds"], ["above", "computing binds"]].map(([key, words]) => { const node = element("text", { class: "tick" }, words); plane.body.append(node); return [key, node]; });

  // A line for each GPU, with its name where the line ends: at the top, or at the right.
  function lines(now) {
    for (const [name, chip] of Object.entries(chips)) {
      const slope = ceiling(chip, now.share) / chip.bandwidth, isChosen = name === now.chip, leaves = MOST_INSTRUCTIONS / slope;
      const label = leaves > MOST_BYTES ? name : "";
      plane.curve(`${name} off`, "ink thin dash", !isChosen && ((x) => (slope * x <= MOST_INSTRUCTIONS ? slope * x : NaN)), label);
      plane.curve(`${name} on`, "blue strong", isChosen && ((x) => (slope * x <= MOST_INSTRUCTIONS ? slope * x : NaN)), label);
      tops[name].setAttribute("class", `name ${isChosen ? "blue" : "ink"}`);
      tops[name].textContent = label ? "" : name;
      for (const [key, value] of Object.entries({ x: plane.px(Math.min(leaves, MOST_BYTES)) + 3, y: plane.inner.top + 12 })) tops[name].setAttribute(key, value.toFixed(1));
    }
    const slope = ceiling(chips[now.chip], now.share) / chips[now.chip].bandwidth;
    plane.area("memory", "", (x) => Math.min(slope * x, MOST_INSTRUCTIONS));
    for (const [key, node] of sides) {
      const [x, y, anchor] = key === "below" ? [plane.inner.right - 8, plane.inner.bottom - 8, "end"] : [plane.inner.left + 8, plane.inner.top + 14, "start"];
      for (const [name, value] of Object.entries({ x, y, "text-anchor": anchor })) node.setAttribute(name, value);
    }
  }
  const tops = Object.fromEntries(Object.keys(chips).map((name) => { const node = element("text", {}); plane.body.append(node); return [name, node]; }));

  const redraw = once(() => {
    const now = state(), chip = chips[now.chip], times = timesOf(chip, now), binding = limit(), most = Math.max(...Object.values(times));
    lines(now);
    plane.place();
    const top = ceiling(chip, now.share), reached = (intensity) => Math.log10(Math.min(top, intensity * chip.bandwidth));
    roof.curve("roof", "blue strong", (x) => reached(10 ** x), chip.name);
    const intensity = now.instructions / now.bytes;
    spot.setAttribute("cx", roof.px(Math.log10(intensity)));
    spot.setAttribute("cy", roof.py(reached(intensity)));
    roof.verticals("ridge", "ink thin dot-line", [Math.log10(top / chip.bandwidth)]);
    for (const key of ["memory", "issue", "arithmetic"]) results[key].show(times[key], `${digits(times[key], 3)} ps`);
    results.limit.show(binding, LIMITS[binding]);
    const load = Math.max(times.issue, times.arithmetic) / times.memory;
    results.load.show(load, `${digits(100 * load, 3)}% of the memory's time`);
    results.room.show(chip.issue * now.bytes / chip.bandwidth, `${digits(chip.issue * now.bytes / chip.bandwidth, 3)} instructions`);
    results.rate.show(1e12 / most, `${digits(1e3 / most, 3)} billion elements a second`);
    for (const node of names) node.setAttribute("aria-pressed", node.dataset.chip === now.chip);
    for (const [key, entry] of Object.entries(fields)) entry.show(now[key]);
  });

  const row = (...children) => element("div", { class: "strip" }, ...children), title = (text) => element("span", { class: "title" }, text);
  const reset = () => put(start), key = (event) => { if (event.key === "r" && event.target.tagName !== "INPUT") reset(); };
  const clear = mount(el, "Explorer of the roofline", [plane, roof], [
    row(title("GPU"), ...names, button("reset", reset, { title: "key r" })), row(title("kernel"), ...kernels),
    row(title("instructions of an element, against its bytes")), plane.node, row(fields.bytes.node, fields.instructions.node, fields.share.node),
    row(results.limit.node, results.load.node), row(title("time for an element"), results.memory.node, results.issue.node, results.arithmetic.node), row(results.room.node, results.rate.node),
    row(title("the roofline: instructions a second against instructions for each byte")), roof.node,
    element("div", { class: "hint" }, "Below a GPU’s line memory takes longer, above it computing does. All are bounds, from data sheets: no kernel is faster. The dotted line is the ridge point, where memory and computing take equally long."),
  ], redraw);
  el.addEventListener("keydown", key);
  const changes = traits.map((name) => `change:${name}`).join(" ");
  model.on(changes, redraw);
  return () => { clear(); el.removeEventListener("keydown", key); model.off(changes, redraw); };
}

const isPositive = (value) => Number.isFinite(value) && value > 0;
const named = (count) => (list) => list.length > 0 && list.every(([name, ...numbers]) => typeof name === "string" && numbers.length === count && numbers.every(isPositive));
const render = drawn({
  bytes: isPositive, instructions: isPositive, share: (value) => isPositive(value) && value <= 1, chips: named(3), kernels: named(3),
  chip: (name, model) => model.get("chips").some(([known]) => known === name),
}, draw);
export default { render };
