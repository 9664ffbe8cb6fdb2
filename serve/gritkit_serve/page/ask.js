// Questions to one knowledge base: answers stream in, newest first, each with its sources beside it.

import { stream } from "./api.js";
import { droppedText, endingText, legend, reuseBadge, sourceList, timingFigures, usageText } from "./answers.js";
import { announce, appendText, byId, counted, el, errorNote, swap } from "./dom.js";

const form = byId("ask-form");
const text = byId("ask-text");

let base = null;
let running = null;

export function startAsk() {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const question = text.value.trim();
    if (question && base?.documents && !running) answer(question);
  });
  text.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  form.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
  byId("ask-stop").addEventListener("click", () => running?.abort());
}

/** What is asked from now on; null where there is nothing. */
export function askFrom(chosen) {
  if (base?.name !== chosen?.name) {
    running?.abort();
    byId("answers").replaceChildren();
  }
  base = chosen;
  byId("ask-title").textContent = base ? `Ask “${base.name}”` : "Ask";
  const isEmpty = !base?.documents;
  byId("ask-why").hidden = !isEmpty;
  byId("ask-send").disabled = isEmpty;
}

async function answer(question) {
  const card = cardFor(question);
  byId("answers").prepend(card.card);
  running = new AbortController();
  show();
  const path = `v1/kb/${encodeURIComponent(base.name)}/ask`;
  try {
    await receive(stream(path, bodyFor(question), { signal: running.signal }), card, question);
    text.select(); // the next question takes its place
    announce("The answer is complete.");
  } catch (error) {
    if (error.name === "AbortError") {
      card.foot.textContent = endingText("stopped");
      announce(endingText("stopped"));
    } else {
      card.left.append(errorNote(error, () => retry(card, question)));
    }
  } finally {
    card.card.ariaBusy = "false";
    running = null;
    show();
  }
}

function retry(card, question) {
  if (running) return;
  card.card.remove();
  answer(question);
}

function bodyFor(question) {
  const body = {
    question,
    stream: true,
    top_k: byId("ask-top").valueAsNumber,
    by: byId("ask-by").value,
    reuse: byId("ask-reuse").value,
  };
  if (byId("ask-max").value) body.max_tokens = byId("ask-max").valueAsNumber;
  return body;
}

async function receive(events, card, question) {
  let sources = null;
  for await (const { event, data } of events) {
    if (event === "sources") {
      sources = sourceList(data.sources, question);
      card.right.append(
        el("h4", {}, counted(data.sources.length, "source")),
        legend(),
        sources.list,
        el("p", { className: "quiet" }, droppedText(data.dropped)),
      );
    } else if (event === "delta") {
      appendText(card.reply, data.text);
    } else if (event === "answer") {
      card.reply.textContent = data.text.trim();
      sources?.refresh(data.text);
      card.left.append(reuseBadge(data), timingFigures(data.timings), card.foot);
      card.foot.textContent = [endingText(data.finish_reason), usageText(data.usage)].filter(Boolean).join(" ");
      if (!data.text.trim()) card.foot.prepend("The model had nothing to say. ");
    }
  }
}

function cardFor(question) {
  const reply = el("p", { className: "reply", dir: "auto" });
  const foot = el("p", { className: "quiet foot" });
  const left = el("div", {}, reply, foot);
  const right = el("div", {});
  const card = el(
    "article",
    { className: "card qa", ariaLabel: `Answer to: ${question}`, ariaBusy: "true" },
    el("h3", { dir: "auto" }, question),
    el("div", { className: "beside" }, left, right),
  );
  return { card, reply, left, right, foot };
}

function show() {
  swap(byId("ask-send"), byId("ask-stop"), running !== null);
}
