// Points of the plane as SVG: labels that keep out of each other's way, and one point at a time that is looked at,
// by pointer or by arrow keys. Knows nothing about vectors.

import { shortened, svg } from "./dom.js";

const MARGIN = 28;
const LINE = 16; // height of a label
const ARROWS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };

/**
 * Draw into `place`, as wide as it is. `descriptions` are what a screen reader says of each point; `onLook(index)` is
 * called when a point gets the pointer or the focus. Returns `look(index, near)`, which marks a point and its links.
 */
export function draw(place, { texts, points, descriptions, onLook }) {
  const width = Math.max(240, place.clientWidth);
  const height = Math.round(Math.min(520, Math.max(300, width * 0.62)));
  const at = scaled(points, width, height);
  const banner = svg("g", { class: "banner", "aria-hidden": "true" });
  const links = svg("g", { class: "links", "aria-hidden": "true" });
  const long = width < 480 ? 20 : 30;
  const marks = at.map(([x, y], index) =>
    svg(
      "g",
      {
        class: "point",
        role: "img",
        tabindex: index ? -1 : 0,
        "aria-label": descriptions[index],
        on: { pointerenter: () => onLook(index), focus: () => onLook(index) },
      },
      svg("circle", { class: "reach", cx: x, cy: y, r: 14 }),
      svg("circle", { class: "disc", cx: x, cy: y, r: 5 }),
      svg("text", {}, shortened(texts[index], long)),
    ),
  );
  const picture = svg(
    "svg",
    {
      viewBox: `0 0 ${width} ${height}`,
      width,
      height,
      role: "group",
      "aria-label": `${texts.length} texts in the plane; the arrow keys go from one to the next`,
      on: { keydown: (event) => step(event, at, marks) },
    },
    links,
    ...marks,
    banner,
  );
  let refocus = place.contains(document.activeElement);
  place.replaceChildren(picture);
  placeLabels(marks, at, width, height);

  const look = (index, near) => {
    marks.forEach((mark, i) => {
      mark.setAttribute("tabindex", i === index ? 0 : -1);
      mark.classList.toggle("on", i === index);
      mark.classList.toggle("near", near.includes(i));
    });
    links.replaceChildren(
      ...near.map((i) => svg("line", { x1: at[index][0], y1: at[index][1], x2: at[i][0], y2: at[i][1] })),
    );
    picture.classList.add("looking");
    const others = near.flatMap((i) => [...marks[i].children].slice(1).map((part) => part.getBBox()));
    showBanner(banner, shortened(texts[index], long + 12), at[index], width, others);
    if (refocus) {
      refocus = false;
      marks[index].focus();
    }
  };
  return look;
}

/** One scale for both axes: a distance on the page is a distance between points. */
function scaled(points, width, height) {
  const ranges = [0, 1].map((axis) => {
    const values = points.map((point) => point[axis]);
    return [Math.min(...values), Math.max(...values)];
  });
  const sizes = [width, height];
  const fits = ranges.map(([low, high], axis) => (sizes[axis] - 2 * MARGIN) / (high - low));
  const scale = Math.min(...fits.filter(Number.isFinite));
  return points.map((point) =>
    point.map((value, axis) => {
      const [low, high] = ranges[axis];
      const offset = Number.isFinite(scale) ? scale * (value - (low + high) / 2) : 0;
      return sizes[axis] / 2 + (axis ? -offset : offset); // a page's y goes down
    }),
  );
}

/** Beside its point where there is room, else above or below; where there is none a label shows when looked at. */
function placeLabels(marks, at, width, height) {
  const taken = at.map(([x, y]) => [x - 7, y - 7, x + 7, y + 7]);
  marks.forEach((mark, index) => {
    const [x, y] = at[index];
    const label = mark.querySelector("text");
    const length = label.getComputedTextLength();
    const middle = Math.min(Math.max(x, length / 2 + 2), width - length / 2 - 2);
    const places = [
      [x + 10, y + 4],
      [x - 10 - length, y + 4],
      [middle - length / 2, y - 11],
      [middle - length / 2, y + 19],
    ].map(([left, base]) => [left, base - LINE + 4, left + length, base + 4]);
    const inside = ([left, top, right, bottom]) => left >= 0 && top >= 0 && right <= width && bottom <= height;
    const free = (box) => inside(box) && !taken.some((other, i) => i !== index && overlap(box, other));
    const box = places.find(free);
    const [left, , , bottom] = box ?? places.find(inside) ?? places[0];
    label.setAttribute("x", Math.max(0, left));
    label.setAttribute("y", bottom - 4);
    if (box) taken.push(box);
    else mark.classList.add("crowded");
  });
}

/** The label of the point that is looked at, over all others: where it hides least of those near it. */
function showBanner(banner, text, [x, y], width, others) {
  const label = svg("text", {}, text);
  const height = LINE + 8;
  const ground = svg("rect", { rx: 4, height });
  banner.replaceChildren(ground, label);
  const length = label.getComputedTextLength() + 16;
  const middle = Math.min(Math.max(x - length / 2, 1), width - length - 1);
  const places = [
    [middle, y - 14 - height],
    [middle, y + 14],
    [x + 14, y - height / 2],
    [x - 14 - length, y - height / 2],
  ].filter(([left, top]) => left >= 0 && left + length <= width && top >= 0);
  const hidden = ([left, top]) => {
    const box = [left, top, left + length, top + height];
    return others.filter((one) => overlap(box, [one.x, one.y, one.x + one.width, one.y + one.height])).length;
  };
  const first = places[0] ?? [1, y + 14];
  const [left, top] = places.reduce((best, place) => (hidden(place) < hidden(best) ? place : best), first);
  for (const [node, dx, dy] of [[ground, 0, 0], [label, 8, LINE]]) {
    node.setAttribute("x", left + dx);
    node.setAttribute("y", top + dy);
  }
  ground.setAttribute("width", length);
}

const overlap = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];

/** Focus the point that lies next in the direction of an arrow key: near, and not far beside it. */
function step(event, at, marks) {
  const direction = ARROWS[event.key];
  const from = marks.indexOf(document.activeElement);
  if (!direction || from < 0) return;
  event.preventDefault();
  let best = [Infinity, from];
  at.forEach(([x, y], index) => {
    const [dx, dy] = [x - at[from][0], y - at[from][1]];
    const along = dx * direction[0] + dy * direction[1];
    const beside = Math.abs(dx * direction[1]) + Math.abs(dy * direction[0]);
    const cost = along + 2 * beside;
    if (index !== from && along > 0 && cost < best[0]) best = [cost, index];
  });
  marks[best[1]].focus();
}
