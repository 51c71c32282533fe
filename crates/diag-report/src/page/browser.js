// The case viewer: one slice at a time, by mouse or keyboard. It only shows what
// the articles below it already hold.
"use strict";

// Dark red to pale yellow, rising in brightness: seen by everybody, and no colour of a CT.
const RAMP = [[64, 0, 20], [128, 6, 38], [189, 30, 38], [227, 74, 51], [252, 141, 60], [254, 204, 92], [255, 255, 204]];
const GRID = 224;

const rampColour = (value) => {
  const at = Math.max(0, Math.min(1, value)) * (RAMP.length - 1);
  const below = Math.min(RAMP.length - 2, Math.floor(at));
  return RAMP[below].map((c, i) => Math.round(c + (RAMP[below + 1][i] - c) * (at - below)));
};

// Values of a map, 0 to 1, on a fine grid: linear between the centres of its cells.
async function finer(png) {
  const image = new Image();
  image.src = "data:image/png;base64," + png;
  await image.decode();
  const { naturalWidth: width, naturalHeight: height } = image;
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const place = (i, n) => {
    const at = Math.max(0, Math.min(n - 1, ((i + 0.5) * n) / GRID - 0.5));
    const below = Math.floor(at);
    return [below, Math.min(n - 1, below + 1), at - below];
  };
  const values = new Float32Array(GRID * GRID);
  for (let row = 0; row < GRID; row++) {
    const [top, bottom, down] = place(row, height);
    for (let col = 0; col < GRID; col++) {
      const [left, right, along] = place(col, width);
      const value = (r, c) => data[4 * (r * width + c)] / 255;
      const upper = value(top, left) * (1 - along) + value(top, right) * along;
      const lower = value(bottom, left) * (1 - along) + value(bottom, right) * along;
      values[row * GRID + col] = upper * (1 - down) + lower * down;
    }
  }
  return values;
}

// The map as a veil that is the denser the higher, with a line at half of the highest point.
function paint(canvas, values, opacity) {
  canvas.width = canvas.height = GRID;
  const context = canvas.getContext("2d");
  const picture = context.createImageData(GRID, GRID);
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    const high = value >= 0.5;
    const edge = [i - 1, i + 1, i - GRID, i + GRID].some((j) => high && j >= 0 && j < values.length && values[j] < 0.5);
    const [red, green, blue] = edge ? [90, 220, 255] : rampColour(value);
    const alpha = edge ? 255 : 255 * opacity * Math.min(1, 1.6 * value);
    picture.data.set([red, green, blue, alpha], 4 * i);
  }
  context.putImageData(picture, 0, 0);
}

// The controls of the heat map. `show` is told the slice, `key` whether a key is ours.
function heatMaps(viewer, side, overlay, maps, labels, make) {
  if (Object.keys(maps).length === 0) return { show() {}, key: () => false, has: () => false };
  const box = make("fieldset", "heat", side);
  make("legend", "", box, "Heat map");
  const labelled = (kind, text) => {
    const label = make("label", "", box, text + " ");
    return make(kind, "", label);
  };
  const on = labelled("input", "Show (m)");
  on.type = "checkbox";
  const head = labelled("select", "Head (h)");
  const method = labelled("select", "Map (n)");
  const explained = labelled("select", "Class (c)");
  const opacity = labelled("input", "Opacity");
  opacity.type = "range";
  opacity.min = 0;
  opacity.max = 100;
  opacity.value = 65;
  const scale = make("div", "scale", box);
  const bar = make("span", "ramp", scale);
  bar.style.background = `linear-gradient(to right, ${RAMP.map((c) => `rgb(${c})`).join(", ")})`;
  make("span", "", scale, "none");
  make("span", "", scale, "highest of this map");
  const words = make("p", "note", box);
  words.setAttribute("aria-live", "polite");
  let entries = [];
  let pictured = false;
  let turn = 0;
  // What was chosen stays chosen while slices go by, where the slice has it.
  const wish = { head: "final", method: "Grad-CAM", explained: null };

  const fill = (select, options, wanted) => {
    select.replaceChildren();
    for (const [value, text] of options) {
      const option = make("option", "", select, text);
      option.value = value;
    }
    const has = options.some(([value]) => String(value) === String(wanted));
    select.value = has ? wanted : options.length ? options[options.length - 1][0] : "";
  };
  const distinct = (values) => [...new Set(values)];

  async function update() {
    const mine = ++turn;
    overlay.hidden = true;
    const classes = distinct(entries.map((e) => e[2]));
    fill(explained, classes.map((k) => [k, labels[k]]), wish.explained ?? classes[0]);
    const ofClass = entries.filter((e) => String(e[2]) === explained.value);
    fill(head, distinct(ofClass.map((e) => e[0])).map((name) => [name, name]), wish.head);
    const ofHead = ofClass.filter((e) => e[0] === head.value);
    fill(method, distinct(ofHead.map((e) => e[1])).map((name) => [name, name]), wish.method);
    const entry = ofHead.find((e) => e[1] === method.value);
    box.disabled = !entry;
    if (!entry) {
      words.textContent = pictured ? "This slice was not chosen for a heat map." : "";
      return;
    }
    const [, , , probability, peak, png] = entry;
    const empty = Number(peak) === 0;
    const looked = `${labels[explained.value]} (probability ${probability} by this head)`;
    // What two places show does not go when one of them is covered.
    const nothing = method.value === "Occlusion"
      ? `Covering no single place lowered ${looked} by 0.0005 or more: none speaks for it, or several do.`
      : `Nothing in this slice spoke for ${looked}.`;
    words.textContent = empty ? nothing : `Evidence for ${looked}; peak ${peak}. Line: half of the peak.`;
    if (!on.checked || empty || !pictured) return;
    const values = await finer(png);
    if (mine !== turn) return;
    paint(overlay, values, Number(opacity.value) / 100);
    overlay.hidden = false;
  }

  on.addEventListener("change", update);
  opacity.addEventListener("input", update);
  head.addEventListener("change", () => { wish.head = head.value; update(); });
  method.addEventListener("change", () => { wish.method = method.value; update(); });
  explained.addEventListener("change", () => { wish.explained = explained.value; update(); });
  const next = (select, name) => {
    if (select.options.length === 0) return;
    select.selectedIndex = (select.selectedIndex + 1) % select.options.length;
    wish[name] = select.value;
    update();
  };
  const keys = {
    m: () => { on.checked = !on.checked; update(); },
    h: () => next(head, "head"),
    n: () => next(method, "method"),
    c: () => next(explained, "explained"),
  };
  return {
    show(slice, hasPicture) {
      const changed = entries !== (maps[slice] ?? []);
      entries = maps[slice] ?? [];
      pictured = hasPicture;
      if (changed || entries.length === 0) update();
    },
    has: (slice) => slice in maps,
    key(name) {
      if (!keys[name]) return false;
      keys[name]();
      return true;
    },
  };
}

document.querySelectorAll(".viewer").forEach((viewer) => {
  const labels = viewer.dataset.labels.split("\u001f");
  const cases = [...viewer.parentElement.querySelectorAll("article.case")].map((article) => ({
    id: article.dataset.case,
    truth: Number(article.dataset.truth),
    called: Number(article.dataset.called),
    probability: article.dataset.probability.split(",").map(Number),
    slices: article.dataset.slices.split(";").map((text) => {
      const [index, probs] = text.split(":");
      const image = article.querySelector(`figure.slice[data-index="${index}"] img`);
      return { index, probs: probs.split(",").map(Number), image };
    }),
  }));
  if (cases.length === 0) return;

  // Text is set as text, never as markup: names come from the data.
  const make = (tag, className, parent, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  };

  viewer.hidden = false;
  viewer.tabIndex = 0;
  viewer.setAttribute("role", "group");
  viewer.setAttribute("aria-label", "Case viewer: left and right arrows change the slice, up and down the case");
  const list = make("ol", "list", viewer);
  const stage = make("div", "stage", viewer);
  const layers = make("div", "layers", stage);
  const picture = make("img", "", layers);
  const overlay = make("canvas", "", layers);
  overlay.hidden = true;
  const nothing = make("p", "nothing", stage, "This slice is not embedded; its probabilities are.");
  const slider = make("input", "", stage);
  slider.type = "range";
  slider.min = 0;
  const side = make("div", "side", viewer);
  const title = make("h4", "", side);
  const verdict = make("p", "", side);
  const bars = labels.map((label, k) => {
    const row = make("div", "bar", side);
    make("span", "name", row, label);
    const track = make("span", "track", row);
    const fill = make("span", `fill f${k % 7}`, track);
    const value = make("span", "value", row);
    return { fill, value };
  });
  const position = make("p", "note", side);
  position.setAttribute("aria-live", "polite");
  const data = viewer.parentElement.querySelector("script.maps");
  const heat = heatMaps(viewer, side, overlay, data ? JSON.parse(data.textContent) : {}, labels, make);
  make("p", "note", side, "Click here, then ← → for slices, ↑ ↓ for cases" + (data ? ", m for the heat map, h, n and c for its head, kind and class." : "."));

  const buttons = cases.map((item, i) => {
    const button = make("button", "", make("li", "", list), "");
    button.type = "button";
    const mark = item.truth === item.called ? "✓" : "✗";
    make("span", "mark", button, mark);
    make("span", "id", button, item.id);
    make("span", "p", button, item.probability[item.truth].toFixed(3));
    button.title = `true ${labels[item.truth]}, called ${labels[item.called]}`;
    button.addEventListener("click", () => show(i, middle(i)));
    return button;
  });

  let current = 0;
  let slice = 0;
  // A case opens near its middle, on a slice that has a heat map if there is one.
  const middle = (i) => {
    const { slices } = cases[i];
    const half = Math.floor(slices.length / 2);
    const mapped = slices.map((_, j) => j).filter((j) => heat.has(`${i}/${slices[j].index}`));
    return mapped.length ? mapped.reduce((a, b) => (Math.abs(b - half) <= Math.abs(a - half) ? b : a)) : half;
  };

  function show(i, j) {
    current = Math.max(0, Math.min(cases.length - 1, i));
    const item = cases[current];
    slice = Math.max(0, Math.min(item.slices.length - 1, j));
    const shown = item.slices[slice];
    picture.hidden = !shown.image;
    nothing.hidden = Boolean(shown.image);
    if (shown.image) {
      picture.src = shown.image.src;
      picture.alt = shown.image.alt;
    }
    heat.show(`${current}/${shown.index}`, Boolean(shown.image));
    slider.max = item.slices.length - 1;
    slider.value = slice;
    slider.setAttribute("aria-label", `slice of case ${item.id}`);
    title.textContent = item.id;
    verdict.textContent = `true ${labels[item.truth]}, called ${labels[item.called]}`;
    bars.forEach(({ fill, value }, k) => {
      fill.style.width = `${100 * shown.probs[k]}%`;
      value.textContent = shown.probs[k].toFixed(3);
    });
    position.textContent =
      `Slice ${shown.index} (${slice + 1} of ${item.slices.length}), case ${current + 1} of ${cases.length}. ` +
      "Bars: this slice.";
    buttons.forEach((button, k) => button.setAttribute("aria-current", String(k === current)));
    // Only the list scrolls, never the page.
    const button = buttons[current];
    const above = button.offsetTop - list.offsetTop;
    if (above < list.scrollTop || above > list.scrollTop + list.clientHeight - button.offsetHeight) {
      list.scrollTop = above - list.clientHeight / 2;
    }
  }

  slider.addEventListener("input", () => show(current, Number(slider.value)));
  viewer.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (heat.key(event.key)) {
      event.preventDefault();
      return;
    }
    // In a list of choices the arrows belong to the list.
    if (event.target.tagName === "SELECT") return;
    const moves = {
      ArrowLeft: [0, -1],
      ArrowRight: [0, 1],
      ArrowUp: [-1, 0],
      ArrowDown: [1, 0],
    };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    if (move[0]) show(current + move[0], middle(Math.max(0, Math.min(cases.length - 1, current + move[0]))));
    else show(current, slice + move[1]);
  });
  show(0, middle(0));
});
