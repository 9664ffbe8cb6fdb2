// The embedding playground: texts to vectors to a picture, and which texts the model holds for close.

import { request } from "./api.js";
import { announce, byId, counted, el, errorNote, shortened } from "./dom.js";
import { draw } from "./plot.js";
import { cosines, project } from "./projection.js";

const MOST = 200; // texts in one picture
const NEAR = 3; // neighbours that a point is linked to
const ROWS = 10;
const EXAMPLE = `Beavers build dams across small rivers
A dam of branches turns a stream into a pond
Otters hunt fish in clear water
Bread rises because yeast makes gas
Knead the dough until it is smooth
The oven should be hot before the loaf goes in
A telescope gathers the light of distant stars
The moon hides the sun during an eclipse
Planets closer to the sun move faster`;

const form = byId("embed-form");

export function startPlayground({ model }) {
  byId("embed-text").value = EXAMPLE;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    show(model());
  });
}

async function show(model) {
  form.querySelector(".note")?.remove();
  const button = byId("embed-send");
  const texts = byId("embed-text").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const instruction = byId("embed-instruction").value.trim();
  button.disabled = true;
  try {
    if (texts.length < 2) throw new Error("One text has nothing to be compared with: write at least two lines.");
    if (texts.length > MOST) throw new Error(`There are ${texts.length} texts, and a picture takes up to ${MOST}.`);
    const body = { model, input: texts, encoding_format: "float", ...(instruction ? { instruction } : {}) };
    const { data } = await request("POST", "v1/embeddings", body);
    picture(texts, data.map((one) => one.embedding));
  } catch (error) {
    form.append(errorNote(error, error.retryAfter === null ? undefined : () => form.requestSubmit()));
  } finally {
    button.disabled = false;
    button.focus();
  }
}

let redraw = () => {};
const resized = new ResizeObserver(() => redraw());

function picture(texts, vectors) {
  const similar = cosines(vectors);
  const { points, explained } = project(vectors);
  const nearest = texts.map((_, index) =>
    [...texts.keys()].filter((other) => other !== index).sort((a, b) => similar[index][b] - similar[index][a]),
  );
  const descriptions = texts.map((text, index) => {
    const [other] = nearest[index];
    return `${text}. Closest: ${texts[other]}, ${similar[index][other].toFixed(2)}`;
  });
  byId("plot-side").hidden = false;
  let look = () => {};
  let looked = null;
  const onLook = (index) => {
    looked = index;
    look(index, nearest[index].slice(0, NEAR));
    byId("near-title").textContent = `Closest to “${shortened(texts[index], 60)}”`;
    fill(nearest[index].map((other) => [similar[index][other], [texts[other]]]));
  };
  let width = 0;
  redraw = () => {
    const now = byId("plot").clientWidth; // 0 while another area is shown
    if (!now || now === width) return;
    width = now;
    look = draw(byId("plot"), { texts, points, descriptions, onLook });
    if (looked !== null) onLook(looked);
  };
  redraw();
  resized.observe(byId("plot"));
  byId("plot-caption").textContent =
    `${counted(texts.length, "text")}, ${vectors[0].length} dimensions. The plane of the first two principal ` +
    `components shows ${Math.round(100 * explained)} % of their differences.`;
  byId("near-title").textContent = "Closest pairs";
  fill(closestPairs(texts, similar));
  announce(`${counted(texts.length, "text")} plotted.`);
}

const meter = (cosine) => el("meter", { min: 0, max: 1, value: cosine, ariaHidden: "true" });

function closestPairs(texts, similar) {
  const pairs = texts.flatMap((text, i) => texts.slice(0, i).map((other, j) => [similar[i][j], [other, text]]));
  return pairs.sort(([a], [b]) => b - a);
}

function fill(rows) {
  const head = el("tr", {}, el("th", { scope: "col" }, "Cosine"), el("th", { scope: "col" }, "Text"));
  const body = rows.slice(0, ROWS).map(([cosine, texts]) =>
    el(
      "tr",
      {},
      el("td", { className: "number" }, cosine.toFixed(3), meter(cosine)),
      el("td", {}, ...texts.map((text) => el("div", { dir: "auto" }, text))),
    ),
  );
  byId("near").replaceChildren(el("thead", {}, head), el("tbody", {}, ...body));
}
