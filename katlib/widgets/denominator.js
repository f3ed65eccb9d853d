// DenominatorExplorer: one set of coefficients under four denominators: KAT's kernels' (A), the paper's (B), its fallback's (signed) and the plain one.
const SPAN = 4;
const VERSIONS = [["A", "blue", "1 + Σ |bⱼ| |x|ʲ"], ["B", "orange dash", "1 + |Σ bⱼ xʲ|"], ["signed", "pink dot-line", "1 + Σ |bⱼ| xʲ"], ["plain", "green thin", "1 + Σ bⱼ xʲ"]];
const RISKY = ["signed", "plain"];       // those that can be 0

function draw({ model, el }) {
  const a = () => model.get("numerator"), b = () => model.get("denominator"), [lo, hi] = model.get("interval");
  const start = [[...a()], [...b()]], shown = { A: true, B: true, signed: true, plain: true };
  let probe = 1.5;

  const choose = ([numerator, denominator]) => {
    model.set("numerator", [...numerator]);
    model.set("denominator", [...denominator]);
    model.save_changes();
  };
  const set = (j, value) => { const list = [...b()]; list[j] = value; model.set("denominator", list); model.save_changes(); };
  const top = new Plot({ x: [-SPAN, SPAN], y: [-2, 4], height: 270, margin: 50, label: "F = P / Q with four denominators" });
  const low = new Plot({ x: [-SPAN, SPAN], y: [-2, 4], height: 240, margin: 50, label: "Four denominators Q with a handle for each coefficient" });
  start[1].forEach((_, j) => {
    const x = 1 + Math.min(0.75, 3 / start[1].length) * j, q = () => DENOMINATORS.plain(x, b());
    low.handle({ name: `b${j + 1}`, style: "green", step: 0.02, where: () => [x, q()], says: () => `b${j + 1} = ${digits(b()[j])}`,
      move: (_, y) => set(j, b()[j] + (y - q()) / x ** (j + 1)) });
  });
  top.handle({ name: "x", style: "ink", shape: "rect", along: "x", step: 0.05, where: () => [probe, top.y[0]], says: () => `x = ${digits(probe)}`,
    move: (x) => { probe = Math.min(SPAN, Math.max(-SPAN, x)); redraw(); } });

  const fields = start[1].map((_, j) => field(`b${j + 1}`, (value) => set(j, value)));
  const at = readout("x =", "x");
  const results = VERSIONS.map(([version, style, name]) => ({ version, node: element("tr", {},
    element("th", { scope: "row" }, element("span", { class: `swatch ${style}`, "aria-hidden": "true" }), ` ${version}: ${name}`),
    ...["F", "least", "error"].map((key) => element("td", {}, element("output", { "data-key": `${key} ${version}` })))) }));
  const table = element("table", { class: "numbers" }, element("thead", {}, element("tr", {}, ...["Q", "F at x", "least Q", "largest error"].map((text) =>
    element("th", { scope: "col" }, text)))), element("tbody", {}, ...results.map(({ node }) => node)));
  const apart = readout("A and B apart by up to", "apart"), zeros = Object.fromEntries(RISKY.map((version) => [version, readout(`poles of the ${version} one:`, `poles ${version}`)]));
  const target = element("select", { "aria-label": "target", onchange: () => { model.set("target", target.value); model.save_changes(); } },
    ...Object.keys(TARGETS).map((name) => element("option", { value: name }, LABELS[name])));

  const redraw = once(() => {
    const P = a(), B = b(), name = model.get("target"), places = Object.fromEntries(RISKY.map((version) => [version, poles(B, -SPAN, SPAN, version)])), grid = Array.from({ length: 2001 }, (_, i) => lo + (hi - lo) * i / 2000);
    top.curve("target", "ink thin", TARGETS[name]);
    for (const [version, style] of VERSIONS) {
      top.curve(version, style, shown[version] && ((x) => rational(x, P, B, version)), version);
      low.curve(version, style, shown[version] && ((x) => DENOMINATORS[version](x, B)), version);
    }
    for (const plot of [top, low]) {
      for (const version of RISKY) plot.verticals(`poles ${version}`, `${version === "plain" ? "green" : "pink"} thin dash`, shown[version] ? places[version] : []);
      plot.place();
    }
    for (const { version, node } of results) {
      const bad = places[version]?.some((x) => x >= lo && x <= hi);
      const numbers = [rational(probe, P, B, version), Math.min(...grid.map((x) => DENOMINATORS[version](x, B))),
        bad ? Infinity : largestError((x) => rational(x, P, B, version), name, lo, hi)[0]];
      node.querySelectorAll("output").forEach((output, k) => { output.value = digits(numbers[k]); output.dataset.value = numbers[k]; });
    }
    at.show(probe);
    const gap = Math.max(...grid.map((x) => Math.abs(rational(x, P, B, "A") - rational(x, P, B, "B"))));
    apart.show(gap);
    for (const version of RISKY) zeros[version].show(places[version].length, places[version].map((x) => `x = ${digits(x, 3)}`).join(", ") || "none here");
    B.forEach((value, j) => fields[j].show(value));
    target.value = name;
  });

  const row = (...children) => element("div", { class: "strip" }, ...children);
  const presets = model.get("presets").map(([name, ...pair]) => button(LABELS[name] ?? name, () => choose(pair), { "data-preset": name }));
  const boxes = VERSIONS.map(([version, style]) => element("label", { class: "choice" },
    element("input", { type: "checkbox", checked: true, onchange: (event) => { shown[version] = event.target.checked; redraw(); } }),
    element("span", { class: `swatch ${style}`, "aria-hidden": "true" }), version));
  const reset = () => choose(start), key = (event) => { if (event.key === "r" && event.target.tagName !== "INPUT") reset(); };
  const clear = mount(el, "Explorer of four denominators", [top, low], [
    element("div", { class: "strip controls" }, element("span", { class: "title" }, "coefficients"), ...presets, button("reset", reset, { title: "key r" })),
    row(...boxes, element("label", { class: "field" }, "target", target)),
    top.node, row(at.node, apart.node, ...RISKY.map((version) => zeros[version].node)), low.node, row(...fields.map(({ node }) => node)),
    element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `numbers on [${lo}, ${hi}]` }, table),
    element("div", { class: "hint" }, `Least Q, the largest error and the distance of A and B are those on [${lo}, ${hi}].`),
  ], redraw);
  el.addEventListener("keydown", key);
  model.on("change:numerator change:denominator change:target", redraw);
  return () => { clear(); el.removeEventListener("keydown", key); model.off("change:numerator change:denominator change:target", redraw); };
}

const render = drawn(ALLOWED, draw);
export default { render };
