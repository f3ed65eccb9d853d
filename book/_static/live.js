// Mounts the live figures of a built page: reads the widget state that the page holds, imports each figure's module and renders it, with no
// kernel and no network. What the module gets is anywidget's front-end model: get, set, on, off, save_changes.
(() => {
  const read = (type) => [...document.querySelectorAll(`script[type="application/vnd.jupyter.widget-${type}+json"]`)];
  const parsed = (script) => { try { return JSON.parse(script.textContent) ?? {}; } catch { return {}; } };
  // Jupyter stores the widgets' models under "state", Colab without it
  const models = (script) => { const stored = parsed(script); return stored.state ?? stored; };

  class Model {
    constructor(state) { this.state = state; this.listeners = new Map(); }
    get(key) { return this.state[key]; }
    set(key, value) {
      this.state[key] = value;
      for (const name of [`change:${key}`, "change"]) for (const listener of this.listeners.get(name) ?? []) listener();
    }
    on(names, listener) { for (const name of names.split(" ")) this.listeners.set(name, [...(this.listeners.get(name) ?? []), listener]); }
    off(names, listener) { for (const name of names.split(" ")) this.listeners.set(name, (this.listeners.get(name) ?? []).filter((l) => l !== listener)); }
    save_changes() {}
    send() {}
  }

  function say(place, text) {
    place.dataset.live = "failed";
    place.textContent = text;
  }

  async function mount(script, states) {
    const state = states[parsed(script).model_id]?.state, place = document.createElement("div"), key = state?._anywidget_id;
    script.after(place);
    if (typeof state?._esm !== "string") return say(place, "There is a live figure here whose state is not stored. Its notebook draws it when it is run.");
    if (state._css && !document.querySelector(`style[data-live="${key}"]`)) {
      const style = document.createElement("style");
      style.dataset.live = key;
      style.textContent = state._css;
      document.head.append(style);
    }
    const address = URL.createObjectURL(new Blob([state._esm], { type: "text/javascript" }));
    try {
      const { default: widget } = await import(address), model = new Model(state);
      await widget.initialize?.({ model });
      await widget.render({ model, el: place });
      place.dataset.live = "ready";
    } catch (error) {
      say(place, `This live figure could not start (${error}). Its notebook draws it too.`);
      console.error(error);
    } finally {
      URL.revokeObjectURL(address);
    }
  }

  addEventListener("DOMContentLoaded", () => {
    const states = Object.assign({}, ...read("state").map(models));
    for (const script of read("view")) mount(script, states);
  });
})();
