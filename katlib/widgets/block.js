// BlockExplorer: the parts of a transformer block in the order in which they run; a click shows where a part is called, its shapes and parameters.
const SLOTS = ["norm1", "attn.qkv", "attn.softmax", "attn.proj", "+ attention", "norm2", "mlp.act1", "mlp.fc1", "mlp.act2", "mlp.fc2", "+ mlp"];
const KINDS = { grkan: "KAT block", mlp: "ViT block" };
const ROW = 34;                          // pixels of a part, as in block.css
const slotOf = (name) => SLOTS.indexOf(name === "mlp.act" ? "mlp.act2" : name);
const shape = (sizes) => sizes.join(" × ");
const grouped = (n) => n.toLocaleString("en-US");
const product = (sizes) => sizes.reduce((total, size) => total * size, 1);

function draw({ model, el }) {
  const blocks = model.get("blocks"), sources = model.get("sources"), start = { kind: model.get("kind"), part: model.get("part") };
  const put = (values) => { for (const [key, value] of Object.entries(values)) model.set(key, value); model.save_changes(); };
  const parts = () => blocks[model.get("kind")];
  // the other block has no part of this name: its activation is the one in the same place
  const chosen = () => parts().find(({ name }) => name === model.get("part")) ?? parts().find(({ name }) => slotOf(name) === Math.max(slotOf("mlp.act2"), slotOf(model.get("part"))));

  // The two shortcuts, from before a norm to the sum that they end in.
  const wires = element("svg", { class: "shortcuts", width: 34, height: SLOTS.length * ROW, "aria-hidden": "true" },
    ...[["norm1", "+ attention"], ["norm2", "+ mlp"]].map(([from, to]) => {
      const top = slotOf(from) * ROW - (slotOf(from) ? 2 : -2), end = slotOf(to) * ROW + ROW / 2;
      return element("path", { class: "curve ink thin", d: `M34 ${top}H14V${end}H31M26 ${end - 4}L31 ${end}L26 ${end + 4}` });
    }));
  const column = element("div", { class: "parts", role: "group", "aria-label": "parts of the block, in the order in which they run" });
  const detail = element("div", { class: "detail", role: "region", "aria-label": "the chosen part", "aria-live": "polite" });
  const kinds = Object.entries(KINDS).map(([kind, words]) => button(words, () => put({ kind }), { "data-kind": kind }));
  const total = readout("parameters of the block:", "total"), functions = readout("of these in learned functions:", "functions");

  const numberOf = (part) => part.parameters.reduce((sum, [, sizes]) => sum + product(sizes), 0);
  const styleOf = ({ name, own }) => (own ? "rational" : name === "mlp.act" ? "fixed" : name.startsWith("+") ? "sum" : "");

  function buttons() {
    column.replaceChildren(...parts().map((part) => {
      const node = button("", () => put({ part: part.name }), { class: `part ${styleOf(part)}`, "data-part": part.name, style: `grid-row: ${slotOf(part.name) + 1}` });
      node.append(element("span", {}, part.name), element("span", { class: "shape" }, shape(part.output)));
      return node;
    }));
  }

  // A listing, with one line marked.
  function listing(name, marked) {
    const code = element("pre", { tabindex: 0, "aria-label": `code of ${name}` });
    sources[name].split("\n").forEach((line, i) => code.append(i === marked ? element("mark", {}, line) : line, "\n"));
    return [element("div", { class: "title" }, name), code];
  }

  const redraw = once(() => {
    const kind = model.get("kind"), part = chosen(), count = numberOf(part);
    if (column.dataset.kind !== kind) buttons();
    column.dataset.kind = kind;
    for (const node of column.children) node.setAttribute("aria-pressed", node.dataset.part === part.name);
    for (const node of kinds) node.setAttribute("aria-pressed", node.dataset.kind === kind);
    const weights = part.parameters.map(([name, sizes]) => `${name} ${shape(sizes)}`).join(", ");
    detail.replaceChildren(
      element("div", {}, element("strong", {}, part.name), part.says ? ` ${part.says}` : " the shortcut is added"),
      element("div", {}, "shape ", element("output", { "data-key": "input" }, shape(part.input)), " → ", element("output", { "data-key": "output" }, shape(part.output))),
      element("div", {}, "parameters ", element("output", { "data-key": "parameters", "data-value": count }, grouped(count)), weights ? ` (${weights})` : ""),
      ...listing(part.code, part.line), ...(part.own ? listing(part.own, -1) : []));
    const all = parts().reduce((sum, each) => sum + numberOf(each), 0), learned = parts().reduce((sum, each) => sum + (each.own ? numberOf(each) : 0), 0);
    total.show(all, grouped(all));
    functions.show(learned, grouped(learned));
  });

  const row = (...children) => element("div", { class: "strip" }, ...children);
  const reset = () => put(start), key = (event) => { if (event.key === "r") reset(); };
  const swatch = (style, text) => element("span", { class: "choice" }, element("span", { class: `patch ${style}`, "aria-hidden": "true" }), text);
  const clear = mount(el, "Explorer of a transformer block", [], [
    row(...kinds, button("reset", reset, { title: "key r" })), row(swatch("rational", "learned function"), swatch("fixed", "fixed function"), swatch("sum", "sum with the shortcut")),
    element("div", { class: "anatomy" }, wires, column, detail), row(total.node, functions.node),
    element("div", { class: "hint" }, "Beside each part stands the shape of what it returns: images × tokens × channels; within the attention, images × heads × tokens × channels of a head."),
  ], redraw);
  el.addEventListener("keydown", key);
  model.on("change:kind change:part", redraw);
  return () => { clear(); el.removeEventListener("keydown", key); model.off("change:kind change:part", redraw); };
}

const isShape = (sizes) => nested(sizes, null) && sizes.length > 0;
const isPart = (part, sources) => slotOf(part.name) >= 0 && isShape(part.input) && isShape(part.output) && typeof sources[part.code] === "string"
  && (part.own === "" || typeof sources[part.own] === "string") && Number.isInteger(part.line) && part.parameters.every(([name, sizes]) => typeof name === "string" && isShape(sizes));
const render = drawn({
  kind: (kind) => Object.hasOwn(KINDS, kind), part: (name) => slotOf(name) >= 0, sources: (sources) => Object.values(sources).every((text) => typeof text === "string"),
  blocks: (blocks, model) => Object.keys(KINDS).every((kind) => blocks[kind].length > 0 && blocks[kind].every((part) => isPart(part, model.get("sources")))),
}, draw);
export default { render };
