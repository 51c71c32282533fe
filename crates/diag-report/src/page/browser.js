// The case viewer: one slice at a time, by mouse or keyboard. It only shows what
// the articles below it already hold.
"use strict";
document.querySelectorAll(".viewer").forEach((viewer) => {
  const labels = viewer.dataset.labels.split("\u001f");
  const cases = [...viewer.parentElement.querySelectorAll("article.case")].map((article) => ({
    id: article.dataset.case,
    truth: Number(article.dataset.truth),
    called: Number(article.dataset.called),
    mean: article.dataset.mean.split(",").map(Number),
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
  const picture = make("img", "", stage);
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
  make("p", "note", side, "Click here, then ← → for slices, ↑ ↓ for cases.");

  const buttons = cases.map((item, i) => {
    const button = make("button", "", make("li", "", list), "");
    button.type = "button";
    const mark = item.truth === item.called ? "✓" : "✗";
    make("span", "mark", button, mark);
    make("span", "id", button, item.id);
    make("span", "p", button, item.mean[item.truth].toFixed(3));
    button.title = `true ${labels[item.truth]}, called ${labels[item.called]}`;
    button.addEventListener("click", () => show(i, middle(i)));
    return button;
  });

  let current = 0;
  let slice = 0;
  const middle = (i) => Math.floor(cases[i].slices.length / 2);

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
