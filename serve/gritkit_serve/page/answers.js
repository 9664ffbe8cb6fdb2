// What an answer from documents shows: its sources with the shared words marked, how its key-values came about, and
// where the time went. Used by the chat and the knowledge bases. Knows nothing about requests.

import { counted, el, shortened, svg, timed } from "./dom.js";

const WORD = /[\p{L}\p{N}]+(?:['’][\p{L}]+)*/gu;

// Words that stand in every English sentence would light up everywhere and show nothing.
const COMMON = new Set(
  `a about after all also an and any are as at be because been before being between both but by can could did do does
  doing done down during each for from had has have having he her here him his how i if in into is it its itself just
  many me more most much my no nor not now of off on once only or other our out over own same she should so some such
  than that the their them then there these they this those through to too under until up upon us use used uses very was
  we were what when where which while who whom why will with would you your`.split(/\s+/),
);

const folded = (word) => word.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase().replace(/['’].*$/u, "");

function wordsOf(text) {
  const words = Array.from(text.matchAll(WORD), ([word]) => folded(word));
  return new Set(words.filter((word) => !COMMON.has(word) && (word.length > 1 || !/[a-z]/.test(word))));
}

/** The text as nodes, with the words of the question and of the answer in marks. */
export function marked(text, question, answer) {
  const asked = wordsOf(question);
  const said = wordsOf(answer);
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(WORD)) {
    const word = folded(match[0]);
    const kind = asked.has(word) ? "asked" : said.has(word) ? "said" : null;
    if (!kind) continue;
    nodes.push(text.slice(from, match.index), el("mark", { className: kind }, match[0]));
    from = match.index + match[0].length;
  }
  nodes.push(text.slice(from));
  return nodes;
}

/** Passages, best first, as a list that opens at the best; `refresh` marks the answer's words once it is there. */
export function sourceList(sources, question) {
  const passages = [];
  const list = el(
    "ol",
    { className: "sources" },
    ...sources.map((source, index) => {
      const passage = el("p", { className: "passage", dir: "auto" }, ...marked(source.text, question, ""));
      passages.push([passage, source.text]);
      const section = [source.metadata?.section].flat().filter((part) => typeof part === "string").join(" › ");
      return el(
        "li",
        {},
        el(
          "details",
          { open: index === 0 },
          el(
            "summary",
            {},
            el("span", { className: "source-name" }, source.id),
            el("span", { className: "quiet" }, ` part ${source.chunk + 1}`),
            el("span", { className: "score", title: "Score of the search; higher is better" }, source.score.toFixed(3)),
            el("span", { className: "snippet quiet" }, shortened(source.text, 200)),
          ),
          section ? el("p", { className: "quiet section" }, section) : null,
          passage,
        ),
      );
    }),
  );
  const refresh = (answer) => {
    for (const [passage, text] of passages) passage.replaceChildren(...marked(text, question, answer));
  };
  return { list, refresh };
}

/** What the two kinds of marks mean. */
export function legend() {
  return el(
    "p",
    { className: "quiet legend" },
    el("mark", { className: "asked" }, "words of the question"),
    " ",
    el("mark", { className: "said" }, "words of the answer"),
  );
}

/** Whether stored key-values served this answer: a badge and the server's reason. */
export function reuseBadge({ reuse, recomputed = 0, reason = "", sources = [] }) {
  let kind = "cached";
  let text = "Key-values cached";
  if (reuse === "off") {
    kind = "computed";
    text = "Key-values computed for this answer";
  } else if (recomputed > 0) {
    kind = "recomputed";
    text = `Key-values recomputed for ${recomputed} of ${sources.length}`;
  }
  return el(
    "p",
    { className: "reuse" },
    el("span", { className: `badge ${kind}` }, text),
    el("span", { className: "quiet" }, ` ${reuse}${reason ? `: ${reason}` : ""}`),
  );
}

/** The milliseconds of an answer, as figures and as a bar of what they are spent on. */
export function timingFigures({ search, load, first_token: first, total }) {
  const prefill = Math.max(0, first - search - load);
  const parts = [
    ["search", search],
    ["load", load],
    ["prefill", prefill],
    ["writing", Math.max(0, total - first)],
  ];
  const whole = parts.reduce((sum, [, ms]) => sum + ms, 0) || 1;
  let left = 0;
  const bars = parts.map(([name, ms]) => {
    const width = (100 * ms) / whole;
    const bar = svg("rect", { class: `part ${name}`, x: left, y: 0, width, height: 6 });
    left += width;
    return bar;
  });
  const figures = [
    ["Search", search, "search"],
    ["Load", load, "load"],
    ["First token", first, "prefill"],
    ["Total", total, "writing"],
  ];
  return el(
    "div",
    { className: "timings" },
    svg("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" }, ...bars),
    el(
      "dl",
      { className: "figures" },
      ...figures.map(([name, ms, part]) =>
        el("div", {}, el("dt", { className: `key ${part}` }, name), el("dd", {}, timed(ms))),
      ),
    ),
  );
}

/** "24 tokens written, 310 of 322 read from the cache" of an answer's usage. */
export function usageText(usage) {
  if (!usage) return "";
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const read = `${counted(usage.prompt_tokens, "token")} read`;
  const written = `${counted(usage.completion_tokens, "token")} written`;
  return cached ? `${read}, ${cached} of them from the cache · ${written}` : `${read} · ${written}`;
}

/** What is to be said about passages that were found and not read; "" where there are none. */
export function droppedText(dropped) {
  return dropped?.length ? `${counted(dropped.length, "passage")} more had no room.` : "";
}

/** What is to be said about how an answer ended; "" for one that ended by itself. */
export function endingText(reason) {
  return { length: "Cut off at the longest answer allowed.", stopped: "Stopped." }[reason] ?? "";
}
