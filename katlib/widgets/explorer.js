// RationalExplorer: one rational function, its ten coefficients as handles, and what follows from them.
const SPAN = 4;
const CLOSE = 0.05;                      // the goal of a newcomer: an error that is about as wide as the line

function draw({ model, el }) {
  const lists = () => [model.get("numerator"), model.get("denominator")];
  const start = lists().map((list) => [...list]), [lo, hi] = model.get("interval"), [nodes, weights] = model.get("quadrature");
  const version = () => (model.get("safe") ? "A" : "plain");
  const shown = { slope: false, target: true, density: true };
  const first = model.get("handles");                               // those that a newcomer begins with; none: all
  let probe = 1.5, isOpen = !first.length;

  const set = (key, index, value) => {
    const list = [...model.get(key)];
    list[index] = value;
    model.set(key, list);
    model.save_changes();
  };
  const choose = ([a, b]) => { model.set("numerator", [...a]); model.set("denominator", [...b]); model.save_changes(); fitRange(); };
  const F = (x) => rational(x, ...lists(), version());

  const top = new Plot({ x: [-SPAN, SPAN], y: [-2, 4], height: 300, label: "The function F = P / Q with a handle for each coefficient of P" });
  const low = new Plot({ x: [-SPAN, SPAN], y: [-2, 8], height: 190, label: "Numerator P and denominator Q with a handle for each coefficient of Q" });

  // a_i moves F at x_i = 0, 1, -1, 2, -2, ...; b_j moves Q at its own x_j; closer together where there are many
  const places = start[0].map((_, i) => (i % 2 ? 1 : -1) * Math.ceil(i / 2) * Math.min(1, SPAN / Math.max(1, Math.ceil((start[0].length - 1) / 2))));
  places.forEach((x, i) => {
    top.handle({ name: `a${i}`, style: "blue", step: 0.01, where: () => [x, F(x)], says: () => `a${i} = ${digits(lists()[0][i])}`,
      move: (_, y) => set("numerator", i, lists()[0][i] + (y - F(x)) * DENOMINATORS[version()](x, lists()[1]) / x ** i) });
  });
  start[1].forEach((_, j) => {
    const x = 1 + Math.min(0.75, 3 / start[1].length) * j, q = () => DENOMINATORS[version()](x, lists()[1]);
    low.handle({ name: `b${j + 1}`, style: "orange", step: 0.02, where: () => [x, q()], says: () => `b${j + 1} = ${digits(lists()[1][j])}`,
      move: (_, y) => {
        const b = lists()[1][j], change = (y - q()) / x ** (j + 1);
        set("denominator", j, model.get("safe") ? (b < 0 ? -1 : 1) * Math.max(0, Math.abs(b) + change) : b + change);
      } });
  });
  top.handle({ name: "x", style: "ink", shape: "rect", along: "x", step: 0.05, where: () => [probe, top.y[0]],
    says: () => `x = ${digits(probe)}, F(x) = ${digits(F(probe))}`, move: (x) => { probe = Math.min(SPAN, Math.max(-SPAN, x)); redraw(); } });

  const results = { error: readout("largest error", "error"), score: readout("score", "score"), gain: readout("gain α =", "gain"), poles: readout("poles:", "poles") };
  const values = { x: readout("x =", "x"), F: readout("F(x) =", "F"), dF: readout("F′(x) =", "dF"), P: readout("P(x) =", "P"), Q: readout("Q(x) =", "Q") };
  const fields = ["numerator", "denominator"].map((key, d) => start[d].map((_, i) =>
    field(`${"ab"[d]}${i + d}`, (value) => set(key, i, value))));
  const target = element("select", { "aria-label": "target", onchange: () => { model.set("target", target.value); model.save_changes(); } },
    ...Object.keys(TARGETS).map((name) => element("option", { value: name }, LABELS[name])));
  const box = (text, style, key) => element("label", { class: "choice" },
    element("input", { type: "checkbox", checked: shown[key], onchange: (event) => { shown[key] = event.target.checked; redraw(); } }),
    element("span", { class: `swatch ${style}`, "aria-hidden": "true" }), text);
  const safe = element("input", { type: "checkbox", onchange: () => { model.set("safe", safe.checked); model.save_changes(); } });
  const code = element("pre", { hidden: true, tabindex: 0, "aria-label": "Python code" });
  const python = () => `import torch, katlib\n\na = torch.tensor([[${lists()[0].join(", ")}]])\nb = torch.tensor([[${lists()[1].join(", ")}]])\n`
    + "y = katlib.rational(x[..., None], a, b)[..., 0]";
  const copy = () => { code.hidden = false; code.textContent = python(); navigator.clipboard?.writeText(python()).catch(() => {}); };
  const reset = () => choose(start);

  function fitRange() {                                             // the lower axes grow with Q, but never while a handle moves
    const q = Math.max(...[-SPAN, SPAN].map((x) => DENOMINATORS.A(x, lists()[1])), 4);
    low.y = [[-2, 8], [-5, 20], [-15, 60], [-50, 200]].find(([, most]) => q < most) ?? [-500, 2000];
    low.layout(low.width);
    redraw();
  }

  // What a newcomer sees: a goal, the curve, and the first handles. The button shows the rest, and hides it again.
  const beyond = [element("div"), element("div")], count = start[0].length + start[1].length;
  const goal = element("div", { role: "status", "data-key": "goal" });
  const more = button("", () => { isOpen = !isOpen; unfold(); redraw(); }, { "data-key": "more" });
  function unfold() {
    for (const { knob } of [...top.handles, ...low.handles]) {
      if (isOpen || first.includes(knob.dataset.name)) knob.removeAttribute("display"); else knob.setAttribute("display", "none");
    }
    for (const part of beyond) part.hidden = !isOpen;
    goal.hidden = isOpen;
    more.textContent = isOpen ? `only ${first.join(" and ")}` : `show all ${count} coefficients`;
    more.setAttribute("aria-expanded", isOpen);
  }
  function judge(error, name) {
    const words = error < CLOSE ? `✓ The curve follows ${LABELS[name]}. Now show all ${count} coefficients, and get closer.`
      : `Goal: move the points ${first.join(" and ")} until the blue curve follows the dashed ${LABELS[name]}.`;
    if (goal.textContent !== words) goal.textContent = words;
  }

  const redraw = once(() => {
    const [a, b] = lists(), name = model.get("target"), zeros = model.get("safe") ? [] : poles(b, -SPAN, SPAN);
    top.area("density", "", isOpen && shown.density && ((x) => Math.exp(-x * x / 2) / Math.sqrt(2 * Math.PI) * 2));
    top.curve("target", "ink dash", shown.target && TARGETS[name]);
    top.curve("slope", "green dot-line", shown.slope && ((x) => derivative(x, a, b, version())), "F′");
    top.curve("F", "blue", F, "F");
    top.verticals("poles", "pink thin dash", zeros);
    low.curve("P", "green thin dash", (x) => horner(x, a), "P");
    low.curve("Q", "orange", (x) => DENOMINATORS[version()](x, b), "Q");
    low.verticals("poles", "pink thin dash", zeros);
    top.place();
    low.place();
    const [error, where] = zeros.some((x) => x >= lo && x <= hi) ? [Infinity, zeros[0]] : largestError(F, name, lo, hi);
    const moment = nodes.reduce((sum, z, k) => sum + weights[k] * F(z) ** 2, 0), best = Math.max(model.get("best")[name], 1e-6);
    const score = Math.max(0, Math.min(100, 100 * Math.log(error) / Math.log(best)));
    results.error.show(error, `${digits(error)} at x = ${digits(where, 3)}`);
    judge(error, name);
    results.score.show(score, `${Math.round(score)} of 100`);
    results.gain.show(zeros.length ? NaN : 1 / moment, zeros.length ? "none, E[F²] is infinite" : digits(1 / moment));
    results.poles.show(zeros.length, zeros.length ? zeros.map((x) => `x = ${digits(x, 3)}`).join(", ") : model.get("safe") ? "none, Q ≥ 1" : "none here");
    for (const [key, value] of Object.entries({ x: probe, F: F(probe), dF: derivative(probe, a, b, version()), P: horner(probe, a), Q: DENOMINATORS[version()](probe, b) }))
      values[key].show(value);
    [a, b].forEach((list, d) => list.forEach((value, i) => fields[d][i].show(value)));
    target.value = name;
    safe.checked = model.get("safe");
    if (!code.hidden) code.textContent = python();
  });

  const row = (...children) => element("div", { class: "strip" }, ...children), controls = (...children) => element("div", { class: "strip controls" }, ...children);
  const presets = model.get("presets").map(([name, ...pair]) => button(LABELS[name] ?? name, () => choose(pair), { "data-preset": name }));
  beyond[0].append(
    controls(element("span", { class: "title" }, "start from"), ...presets),
    row(element("label", { class: "field" }, "target", target), box("target", "ink dash", "target"), box("slope F′", "green dot-line", "slope"),
      box("inputs N(0, 1)", "blue", "density")));
  beyond[1].append(
    row(results.gain.node, results.poles.node),
    element("div", { class: "hint" }, "The gain is 1 / E[F(z)²] for inputs z from N(0, 1): the factor that gives a signal its size back after F. A pole is a place where Q is 0, so that F is infinite."),
    row(...Object.values(values).map((value) => value.node)),
    low.node,
    row(element("label", { class: "choice" }, safe, "absolute values in Q")),
    row(...fields.flat().map((entry) => entry.node)),
    element("div", { class: "hint" }, `Each handle changes one coefficient alone. Those of a0, a1, … stand on F, at x = ${places.map((x) => digits(x, 3)).join(", ")} in this order; those of b1, b2, … stand on Q.`),
    controls(button("copy as Python", copy)), code);
  const clear = mount(el, "Explorer of a rational function", [top, low], [
    goal, beyond[0], top.node,
    row(results.error.node, results.score.node, element("span", { class: "controls" }, button("reset", reset, { title: "key r" }), " ", first.length ? more : "")),
    beyond[1],
  ], redraw);
  unfold();
  const key = (event) => { if (event.key === "r" && event.target.tagName !== "INPUT") reset(); };
  el.addEventListener("keydown", key);
  model.on("change:numerator change:denominator change:target change:safe", redraw);
  fitRange();
  return () => { clear(); el.removeEventListener("keydown", key); model.off("change:numerator change:denominator change:target change:safe", redraw); };
}

const render = drawn({
  ...ALLOWED, quadrature: areTwins, handles: (names) => names.every((name) => typeof name === "string"), best: (best) => Object.keys(TARGETS).every((name) => Number.isFinite(best[name])),
}, draw);
export default { render };
