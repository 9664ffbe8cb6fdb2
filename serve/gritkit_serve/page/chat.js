// The chat: turns that stream in, can be stopped, and may be answered from a knowledge base.
// Knows nothing about what knowledge bases hold.

import { stream } from "./api.js";
import { droppedText, endingText, legend, reuseBadge, sourceList, timingFigures, usageText } from "./answers.js";
import { announce, appendText, byId, counted, el, errorNote, swap } from "./dom.js";

const log = byId("chat-log");
const form = byId("chat-form");
const text = byId("chat-text");
const bases = byId("chat-kb");

/** The turns that the model is told of, in the API's own shape. A turn that failed is not among them. */
let messages = [];
let running = null;

export function startChat({ model }) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const message = text.value.trim();
    if (running || !message) return;
    text.value = "";
    say(message, model);
  });
  text.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  byId("chat-stop").addEventListener("click", () => running?.abort());
  form.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
  byId("chat-new").addEventListener("click", () => {
    running?.abort();
    messages = [];
    log.replaceChildren();
    show();
    text.focus();
  });
}

/** Offer these knowledge bases, keeping the one that is chosen. */
export function offerBases(names) {
  const chosen = bases.value;
  const options = names.map((name) => el("option", { value: name }, name));
  bases.replaceChildren(el("option", { value: "" }, "the model alone"), ...options);
  bases.value = names.includes(chosen) ? chosen : "";
}

async function say(message, model) {
  const turn = turnFor(message);
  log.append(turn.asked, turn.answer);
  running = new AbortController();
  show();
  turn.answer.scrollIntoView({ block: "end" });
  const body = bodyFor(message, model());
  try {
    await receive(stream("v1/chat/completions", body, { signal: running.signal }), turn, message);
    remember(turn, message);
    announce("The answer is complete.");
  } catch (error) {
    if (error.name === "AbortError") {
      remember(turn, message); // what came before the reader stopped it stays part of the conversation
      turn.foot.textContent = endingText("stopped");
      announce(endingText("stopped"));
    } else {
      turn.answer.append(errorNote(error, () => retry(turn, message, model)));
    }
  } finally {
    turn.answer.ariaBusy = "false";
    running = null;
    show();
  }
}

function retry(turn, message, model) {
  if (running) return;
  turn.asked.remove();
  turn.answer.remove();
  say(message, model);
}

function remember(turn, message) {
  if (turn.text && turn.answer.isConnected) {
    messages.push({ role: "user", content: message }, { role: "assistant", content: turn.text });
  }
}

function bodyFor(message, model) {
  const system = byId("chat-system").value.trim();
  const body = {
    model,
    messages: [
      ...(system ? [{ role: "system", content: system }] : []),
      ...messages,
      { role: "user", content: message },
    ],
    stream: true,
    stream_options: { include_usage: true },
  };
  if (bases.value) body.kb = bases.value;
  if (byId("chat-max").value) body.max_tokens = byId("chat-max").valueAsNumber;
  if (byId("chat-temperature").value) body.temperature = byId("chat-temperature").valueAsNumber;
  return body;
}

async function receive(events, turn, message) {
  let usage = null;
  let ended = "";
  const found = {}; // sources, reuse, timings: in whichever chunk the server has them
  let sources = null;
  for await (const { data } of events) {
    const following = atEnd();
    const choice = data.choices?.[0];
    if (choice?.delta?.content) {
      turn.text += choice.delta.content;
      appendText(turn.said, choice.delta.content);
    }
    ended = choice?.finish_reason ?? ended;
    usage = data.usage ?? usage;
    Object.assign(found, data.gritkit);
    if (found.sources && !sources) {
      sources = sourceList(found.sources, message);
      turn.after.append(
        el(
          "details",
          {},
          el("summary", {}, counted(found.sources.length, "source")),
          legend(),
          sources.list,
          el("p", { className: "quiet" }, droppedText(found.dropped)),
        ),
      );
    }
    if (following) turn.answer.scrollIntoView({ block: "end" });
  }
  const following = atEnd();
  sources?.refresh(turn.text);
  if (found.reuse) turn.after.prepend(reuseBadge(found));
  if (found.timings) turn.after.append(timingFigures(found.timings));
  turn.foot.textContent = [endingText(ended), usageText(usage)].filter(Boolean).join(" ");
  if (!turn.text.trim()) turn.foot.prepend("The model had nothing to say. ");
  if (following) turn.answer.scrollIntoView({ block: "end" });
}

function turnFor(message) {
  const said = el("p", { className: "reply", dir: "auto" });
  const after = el("div");
  const foot = el("p", { className: "quiet foot" });
  const answer = el(
    "article",
    { className: "answer", ariaLabel: "Answer", ariaBusy: "true" },
    said,
    after,
    foot,
  );
  const asked = el("article", { className: "asked-turn", ariaLabel: "You" }, el("p", { dir: "auto" }, message));
  return { asked, answer, said, after, foot, text: "" };
}

/** Whether the reader looks at the end, and so wants to follow it. */
function atEnd() {
  const page = document.scrollingElement;
  return page.scrollHeight - page.scrollTop - page.clientHeight < 80;
}

function show() {
  byId("chat-empty").hidden = log.childElementCount > 0;
  byId("chat-new").hidden = log.childElementCount === 0;
  swap(byId("chat-send"), byId("chat-stop"), running !== null);
}
