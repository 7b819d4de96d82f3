// Tables and tiles. Text goes in as text: nothing that a cluster says becomes markup.

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== undefined && child !== null).map((child) => child.nodeType ? child : String(child)));
  return made;
}

// A row is { key, cells, pick }: a cell is text, or { text, tone, bar } where bar is a share from 0 to 1.
export function table(target, heads, rows) {
  const body = element("tbody", {}, ...rows.map((row) => {
    const pick = row.pick && { class: "pick", tabindex: "0", onclick: row.pick, onkeydown: (press) => press.key === "Enter" && row.pick() };
    return element("tr", { "data-key": row.key, ...pick }, ...row.cells.map(cell));
  }));
  const head = element("thead", {}, element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text))));
  target.replaceChildren(head, body);
}

function cell(content) {
  if (content === null || typeof content !== "object") return element("td", {}, content ?? "");
  const kind = [content.tone, content.wide && "wide", content.number && "number"].filter(Boolean).join(" ");
  const text = content.text ?? "";
  return content.bar === undefined ? element("td", { class: kind }, text) : element("td", { class: kind }, bar(content.bar), text);
}

function bar(share) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 100 10");
  svg.setAttribute("preserveAspectRatio", "none");
  const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  rect.setAttribute("width", String(Math.min(100, Math.max(0, share * 100))));
  rect.setAttribute("height", "10");
  svg.append(rect);
  return element("span", { class: "bar" }, svg);
}

export function tiles(target, all) {
  target.replaceChildren(...all.map(({ name, value, tone }) =>
    element("div", { class: "tile", "data-tile": name }, element("b", { class: tone }, value), element("span", { class: "quiet" }, name))));
}
