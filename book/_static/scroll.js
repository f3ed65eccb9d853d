// Boxes of a page that scroll sideways, such as wide drawings on a phone: the keyboard reaches them, and a screen reader has a name for them.
(() => {
  const names = new Set();

  // What the box shows, and how it begins. No two boxes have the same name.
  function nameOf(box) {
    const kind = box.querySelector("table") ? "table" : box.closest(".cell_output") ? "output" : box.querySelector("pre") || box.matches("pre") ? "code" : "formula";
    const text = (box.querySelector("caption") ?? box).textContent.trim().replace(/\s+/g, " ").slice(0, 60), name = `${kind}: ${text}`;
    let unique = name;
    for (let count = 2; names.has(unique); count++) unique = `${name} (${count})`;
    names.add(unique);
    return unique;
  }

  function scrolls(box) {
    return box.scrollWidth > box.clientWidth + 1 && ["auto", "scroll"].includes(getComputedStyle(box).overflowX);
  }

  function mark(box) {
    if (box.hasAttribute("aria-label") && !("scrolls" in box.dataset)) return;      // has a name of its own
    if (scrolls(box)) {
      box.tabIndex = 0;
      if ("scrolls" in box.dataset) return;
      box.dataset.scrolls = "";
      if (box.tagName === "FIGURE") return;                         // which is named by its caption
      box.setAttribute("role", "region");
      box.setAttribute("aria-label", nameOf(box));
    } else if ("scrolls" in box.dataset) {
      delete box.dataset.scrolls;
      names.delete(box.getAttribute("aria-label"));
      for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
    }
  }

  addEventListener("DOMContentLoaded", () => {
    const article = document.querySelector(".bd-article");
    if (!article) return;
    const markAll = () => article.querySelectorAll("figure, pre, div").forEach(mark);
    new ResizeObserver(() => requestAnimationFrame(markAll)).observe(article);      // another width, a fold opened, formulas drawn
  });
})();
