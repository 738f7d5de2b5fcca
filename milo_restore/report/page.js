"use strict";
// The page's only script: charts, viewers, lists, sorting, theme. It reads the data that the page holds and nothing else.
const DATA = JSON.parse(document.getElementById("data").textContent);
const COLOURS = 8;
const LARGEST_ZOOM = 16;
let current = null; // the viewer that keys act on

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "rect", "text", "line", "title"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

function choice(label, options, change) {
  const select = make("select", { "aria-label": label, onchange: () => change(select.value) });
  options.forEach(([value, text]) => select.append(make("option", { value }, text)));
  return select;
}

function colour(run) { return `var(--c${run % COLOURS})`; }

function written(value) { return value === null || value === undefined ? "–" : String(Number(value.toPrecision(5))); }

// Tables -------------------------------------------------------------------------------------------------------------

function sortable(table) {
  const heads = [...table.querySelectorAll("thead th")];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const better = head.dataset.better; // the first click puts the best on top
    const first = better === "higher" ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    heads.forEach((one) => one.setAttribute("aria-sort", one === head ? order : "none"));
    const sign = order === "ascending" ? 1 : -1;
    const key = (row) => row.children[column].dataset.value ?? row.children[column].textContent;
    const compare = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === ""); // what is missing stays below
      return sign * (better ? Number(x) - Number(y) : x.localeCompare(y));
    };
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort(compare));
  }));
}

// Per-image bars -----------------------------------------------------------------------------------------------------

function chart(place, group, open) {
  const metrics = Object.keys(group.metrics);
  if (!metrics.length) return;
  const frame = make("div", { class: "chart", tabindex: 0, role: "region", "aria-label": "Values per image" });
  const hint = make("span", { class: "hint" });
  let metric = metrics[0], order = "name";
  const legend = make("ul", { class: "legend" }, ...group.runs.map((run, number) =>
    make("li", {}, make("i", { style: `background:${colour(number)}` }), run)));
  const draw = () => frame.replaceChildren(bars(group, metric, order, open, hint, frame.clientWidth || 800));
  place.append(make("h3", {}, "Per image"),
    make("div", { class: "bar" },
      choice("Metric", metrics.map((name) => [name, name]), (name) => { metric = name; draw(); }),
      choice("Order", [["name", "by name"], ...group.runs.map((run, number) => [number, `by ${run}`])],
        (value) => { order = value; draw(); }), hint), legend, frame);
  draw();
  addEventListener("resize", draw);
}

function bars(group, metric, order, open, hint, width) {
  const values = group.values[metric], thick = 13, gap = 12; // a bar is as tall as its number
  const known = values.flat().filter((value) => value !== null);
  const highest = Math.max(...known), lowest = Math.min(...known);
  const zero = lowest < 0 || lowest < 0.5 * highest ? Math.min(0, lowest) : lowest - (highest - lowest || highest || 1) * 0.15;
  const ends = `axis from ${written(zero)} to ${written(highest)}`;
  hint.textContent = known.length ? ends + (zero === 0 ? "" : ": it does not start at 0, so bars show differences, not sizes") : "no values";
  const left = Math.min(160, width * 0.3), room = Math.max(60, width - left - 70);
  const across = (value) => left + ((value - zero) / (highest - zero || 1)) * room;
  const images = group.names.map((name, number) => number);
  if (order !== "name") {
    const sign = group.metrics[metric] === "higher" ? -1 : 1;
    images.sort((a, b) => sign * ((values[order][a] ?? sign * Infinity) - (values[order][b] ?? sign * Infinity)));
  }
  const tall = group.runs.length * thick + gap;
  const svg = make("svg", { width, height: images.length * tall + gap, role: "img", "aria-label": `${metric} per image` });
  images.forEach((image, row) => {
    const top = row * tall + gap;
    const name = group.names[image];
    const label = make("text", { class: "name", x: left - 6, y: top + (tall - gap) / 2 + 4, "text-anchor": "end", onclick: () => open(image) });
    label.append(name.length > left / 7 ? `${name.slice(0, left / 7 - 1)}…` : name, make("title", {}, name));
    svg.append(label);
    group.runs.forEach((run, number) => {
      const value = values[number][image];
      if (value === null) return;
      const y = top + number * thick;
      svg.append(make("rect", { x: left, y, width: Math.max(1, across(value) - left), height: thick - 3, fill: colour(number) },
        make("title", {}, `${name}, ${run}: ${written(value)}`)),
      make("text", { x: across(value) + 4, y: y + thick - 3 }, written(value)));
    });
  });
  svg.append(make("line", { class: zero === 0 ? "axis" : "axis cut", x1: left, x2: left, y1: 0, y2: images.length * tall + gap }));
  return svg;
}

// Viewer -------------------------------------------------------------------------------------------------------------

class Viewer {
  constructor(place, group) {
    this.group = group; this.place = place; this.image = 0; this.scale = 1; this.x = 0; this.y = 0;
    this.maps = false; this.slider = false; this.touches = new Map();
    const roles = new Set(group.pictures.flatMap((one) => [...Object.keys(one.shown), ...Object.keys(one.missing)]));
    this.roles = [["input", "input"], ...group.runs.map((run, number) => [String(number), run]), ["ref", "reference"]]
      .filter(([role]) => roles.has(role));
    this.hasMaps = [...roles].some((role) => role.startsWith("map"));
    this.build();
    place.addEventListener("keydown", (event) => this.key(event));
    place.addEventListener("pointerdown", () => { current = this; });
    place.addEventListener("focusin", () => { current = this; });
  }

  build() {
    const button = (text, label, action, pressed) =>
      make("button", { type: "button", "aria-label": label, "aria-pressed": pressed ? "false" : null, onclick: action }, text);
    this.select = choice("Image", this.group.pictures.map((one, number) => [number, this.group.names[one.image]]),
      (value) => this.show(Number(value)));
    this.mapButton = button("MILO maps", "Show MILO maps", () => this.toggleMaps(), true);
    this.slideButton = button("Slider", "Show the before/after slider", () => this.toggleSlider(), true);
    this.note = make("span", { class: "hint", "aria-live": "polite" });
    this.ramp = make("span", { class: "hint", hidden: true }, "visible error 0", make("i", { class: "ramp" }), `${DATA.mapTop} and above (${this.group.map})`);
    this.panes = make("div", { class: "panes" });
    const last = this.roles.length - 1;
    this.pair = [this.roles[0][0], this.roles[Math.min(1, last)][0]];
    if (this.roles[0][0] !== "input" && last > 0) this.pair = [this.roles[0][0], this.roles[last][0]];
    this.chosen = this.pair.map((role, side) => {
      const select = choice(side ? "Right of the slider" : "Left of the slider", this.roles, (value) => { this.pair[side] = value; this.draw(); });
      select.value = role;
      return select;
    });
    this.stage = make("div", { class: "view", tabindex: 0, role: "group", "aria-label": "Before/after: zoom and move with keys" });
    this.range = make("input", { type: "range", min: 0, max: 100, value: 50, step: 1, "aria-label": "Before/after: share of the left picture",
      oninput: () => this.split() });
    this.compare = make("div", { class: "slider", hidden: true }, make("div", { class: "bar" }, this.chosen[0],
      make("span", { class: "hint" }, "against"), this.chosen[1]), this.range, this.stage);
    this.watch(this.stage);
    this.place.append(make("h3", {}, "Pictures"), make("div", { class: "bar", role: "toolbar", "aria-label": "Viewer" },
      button("‹", "Previous image", () => this.step(-1)), this.select, button("›", "Next image", () => this.step(1)),
      button("+", "Zoom in", () => this.zoom(1.5)), button("−", "Zoom out", () => this.zoom(1 / 1.5)),
      button("Whole", "Back to the whole picture", () => this.reset()), ...(this.hasMaps ? [this.mapButton] : []),
      ...(this.roles.length > 1 ? [this.slideButton] : []), this.ramp, this.note), this.compare, this.panes);
    this.show(0);
  }

  show(number) {
    this.image = number; this.select.value = number; this.draw();
  }

  step(by) { const count = this.group.pictures.length; this.show((this.image + by + count) % count); }

  toggleMaps() {
    if (!this.hasMaps) return;
    this.maps = !this.maps; this.mapButton.setAttribute("aria-pressed", this.maps); this.ramp.hidden = !this.maps; this.draw();
  }

  toggleSlider() {
    if (this.roles.length < 2) return;
    this.slider = !this.slider; this.slideButton.setAttribute("aria-pressed", this.slider);
    this.compare.hidden = !this.slider; this.draw();
    if (this.slider) this.compare.scrollIntoView({ block: "nearest" });
  }

  fill(view, role, name, maps) {
    const picture = this.group.pictures[this.image];
    const source = (maps && picture.shown[`map${role}`]) || picture.shown[role];
    view.style.aspectRatio = `${picture.size[0]} / ${picture.size[1]}`;
    const content = source ? make("img", { src: source, alt: `${name} of ${this.group.names[picture.image]}`, draggable: false })
      : make("p", {}, picture.missing[role] || "none");
    view.append(content);
    return content;
  }

  draw() {
    const picture = this.group.pictures[this.image];
    const focused = [...this.panes.children].findIndex((pane) => pane.contains(document.activeElement));
    this.note.textContent = picture.note;
    this.panes.replaceChildren(...this.roles.map(([role, name]) => {
      const view = make("div", { class: "view", tabindex: 0, role: "group", "aria-label": `${name}: zoom and move with keys` });
      this.fill(view, role, name, this.maps); this.watch(view);
      return make("figure", {}, view, make("figcaption", {}, make("b", {}, name), make("span", {}, this.caption(role))));
    }));
    if (focused >= 0) this.panes.children[focused].querySelector(".view").focus({ preventScroll: true });
    const [left, right] = this.pair, names = Object.fromEntries(this.roles);
    this.stage.replaceChildren();
    const maps = this.maps && this.pair.every((role) => `map${role}` in picture.shown); // like against like
    this.fill(this.stage, right, names[right], maps);
    this.over = this.fill(this.stage, left, names[left], maps);
    this.stage.append(make("div", { class: "line" }));
    for (const part of [this.range, this.stage]) // as a whole on the screen, the handle above the cut
      part.style.maxWidth = `calc(70vh * ${picture.size[0] / picture.size[1]})`;
    this.transform();
  }

  caption(role) {
    if (!/^\d+$/.test(role)) return "";
    const names = Object.keys(this.group.metrics), image = this.group.pictures[this.image].image;
    const shown = new Set([names[0], this.group.map].filter((name) => names.includes(name)));
    return [...shown].map((name) => `${name} ${written(this.group.values[name][role][image])}`).join(" · ");
  }

  split() {
    const share = Number(this.range.value) / 100;
    this.stage.querySelector(".line").style.left = `${100 * share}%`;
    // the clip is of the picture before it is zoomed and moved
    const inside = (share - this.x) / this.scale;
    this.over.style.clipPath = `inset(0 ${100 * (1 - Math.min(1, Math.max(0, inside)))}% 0 0)`;
  }

  transform() {
    const views = [...this.panes.querySelectorAll(".view"), this.stage];
    views.forEach((view) => {
      // Pixels are shown as they are once one of the picture's takes two of the screen's.
      view.classList.toggle("near", view.clientWidth * this.scale >= 2 * this.group.pictures[this.image].size[0]);
      view.style.touchAction = this.scale > 1 ? "none" : "pan-y"; // a whole picture lets the page scroll under a finger
      view.querySelectorAll("img").forEach((image) => {
        image.style.transform = `translate(${100 * this.x}%, ${100 * this.y}%) scale(${this.scale})`;
      });
    });
    this.split();
  }

  // x and y: where the picture's corner lies, in parts of the pane, so that panes of any size agree.
  zoom(by, x = 0.5, y = 0.5) {
    const scale = Math.min(LARGEST_ZOOM, Math.max(1, this.scale * by)), ratio = scale / this.scale;
    this.x = x - (x - this.x) * ratio; this.y = y - (y - this.y) * ratio; this.scale = scale;
    this.move(0, 0);
  }

  move(x, y) {
    const least = 1 - this.scale;
    this.x = Math.min(0, Math.max(least, this.x + x)); this.y = Math.min(0, Math.max(least, this.y + y));
    this.transform();
  }

  reset() { this.scale = 1; this.x = 0; this.y = 0; this.transform(); }

  watch(view) {
    const at = (event) => { const box = view.getBoundingClientRect(); return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]; };
    view.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && this.scale === 1 && document.activeElement !== view) return; // the page is being scrolled
      if (this.scale === 1 && event.deltaY > 0) return; // nothing to zoom out of
      event.preventDefault(); this.zoom(Math.exp(-event.deltaY / 300), ...at(event));
    }, { passive: false });
    view.addEventListener("pointerdown", (event) => { view.setPointerCapture(event.pointerId); this.touches.set(event.pointerId, at(event)); });
    view.addEventListener("pointermove", (event) => {
      const before = this.touches.get(event.pointerId);
      if (!before) return;
      const now = at(event), others = [...this.touches].filter(([id]) => id !== event.pointerId);
      if (others.length) {
        const [ox, oy] = others[0][1], far = (point) => Math.hypot(point[0] - ox, point[1] - oy);
        this.zoom(far(now) / Math.max(far(before), 0.01), (now[0] + ox) / 2, (now[1] + oy) / 2);
      } else if (view === this.stage && this.scale === 1) {
        this.range.value = 100 * now[0]; this.split();
      } else this.move(now[0] - before[0], now[1] - before[1]);
      this.touches.set(event.pointerId, now);
    });
    for (const end of ["pointerup", "pointercancel"]) view.addEventListener(end, (event) => this.touches.delete(event.pointerId));
  }

  key(event) {
    if (["SELECT", "INPUT"].includes(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
    const actions = { n: () => this.step(1), p: () => this.step(-1), "+": () => this.zoom(1.5), "=": () => this.zoom(1.5),
      "-": () => this.zoom(1 / 1.5), 0: () => this.reset(), m: () => this.toggleMaps(), s: () => this.toggleSlider(),
      ArrowLeft: () => this.move(0.1, 0), ArrowRight: () => this.move(-0.1, 0), ArrowUp: () => this.move(0, 0.1), ArrowDown: () => this.move(0, -0.1) };
    if (!(event.key in actions) || (event.key.startsWith("Arrow") && this.scale === 1)) return;
    event.preventDefault(); event.stopPropagation(); actions[event.key]();
  }
}

// Best and worst -----------------------------------------------------------------------------------------------------

function extremes(place, group, open) {
  const metrics = Object.keys(group.metrics);
  if (!metrics.length || group.names.length < 2) return;
  const lists = make("div", { class: "lists" });
  let metric = group.ranking, run = 0; // by which pictures were chosen, where not all have one
  const thumbnail = (image) => {
    const picture = group.pictures.find((one) => one.image === image);
    const source = picture && picture.shown[run];
    return source ? [make("img", { src: source, alt: "", width: picture.size[0], height: picture.size[1] })] : [];
  };
  const list = (title, images) => make("div", {}, make("h3", {}, title), make("ol", {}, ...images.map((image) => make("li", {},
    make("button", { type: "button", onclick: () => open(image) }, ...thumbnail(image), make("span", {}, group.names[image])),
    ` ${written(group.values[metric][run][image])}`))));
  const draw = () => {
    const values = group.values[metric][run], sign = group.metrics[metric] === "higher" ? -1 : 1;
    const known = group.names.map((name, number) => number).filter((number) => values[number] !== null)
      .sort((a, b) => sign * (values[a] - values[b]));
    const count = Math.min(10, Math.floor(known.length / 2) || known.length);
    lists.replaceChildren(list(`Worst ${count}`, known.slice(-count).reverse()), list(`Best ${count}`, known.slice(0, count)));
  };
  const by = choice("Metric", metrics.map((name) => [name, name]), (name) => { metric = name; draw(); });
  by.value = metric;
  place.append(make("h3", {}, "Worst and best images"), make("div", { class: "bar" }, by,
    choice("Method", group.runs.map((name, number) => [number, name]), (value) => { run = Number(value); draw(); })), lists);
  draw();
}

// The page -----------------------------------------------------------------------------------------------------------

document.querySelectorAll("table.means").forEach(sortable);
const cues = () => document.querySelectorAll(".scroll").forEach((one) => one.classList.toggle("wide", one.scrollWidth > one.clientWidth));
addEventListener("resize", cues);
cues();
document.querySelectorAll("section[data-group]").forEach((section) => {
  const group = DATA.groups[Number(section.dataset.group)];
  const viewer = group.pictures.length ? new Viewer(section.querySelector(".viewer"), group) : null;
  const open = (image) => {
    const number = group.pictures.findIndex((one) => one.image === image);
    if (!viewer) return;
    if (number < 0) viewer.note.textContent = `${group.names[image]} has no picture here`;
    else viewer.show(number);
    viewer.place.scrollIntoView({ behavior: "smooth", block: "start" });
    current = viewer;
  };
  current = current || viewer;
  chart(section.querySelector(".charts"), group, open);
  extremes(section.querySelector(".extremes"), group, open);
});
document.addEventListener("keydown", (event) => { if (event.target === document.body && current) current.key(event); });
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
document.getElementById("help").addEventListener("click", (event) => {
  const keys = document.getElementById("keys");
  keys.hidden = !keys.hidden; event.currentTarget.setAttribute("aria-expanded", !keys.hidden);
});
