// The knowledge bases: list, create, fill, look into, delete. What is asked of them is ask.js's business.

import { request, stream } from "./api.js";
import { announce, ask, byId, counted, el, errorNote, sized } from "./dom.js";

const FIRST = "documents"; // what a visitor's first knowledge base is called, unless it is given a name
const PAGE = 50; // documents shown at a time

let bases = [];
let fixed = false; // none can be made or deleted
let chosen = null;
let filling = null;
let changed = () => {};

/** `onChange(bases, chosen)` is told whenever there are others, or another one is looked at. */
export function startBases(onChange) {
  changed = onChange;
  byId("base-new").addEventListener("submit", (event) => {
    event.preventDefault();
    create(byId("base-name").value.trim()).then(
      (name) => {
        byId("base-new").reset();
        byId("base-make").open = false;
        announce(`${name} is there.`);
        byId("files").focus();
      },
      (error) => report(errorNote(error)),
    );
  });
  byId("base-delete").addEventListener("click", remove);
  byId("files").addEventListener("change", (event) => {
    addFiles([...event.target.files]);
    event.target.value = ""; // the same file can be chosen again
  });
  byId("paste-form").addEventListener("submit", (event) => {
    event.preventDefault();
    addText();
  });
  byId("indexing-stop").addEventListener("click", () => filling?.abort());
  byId("contents").addEventListener("toggle", () => byId("contents").open && listContents());
  byId("contents-more").addEventListener("click", () => listContents(true));
  acceptDrops(byId("drop"));
}

/** Ask the server again for what there is. */
export async function refreshBases(choose = chosen) {
  try {
    ({ data: bases, fixed } = await request("GET", "v1/kb"));
  } catch (error) {
    report(errorNote(error, () => refreshBases(choose)));
    return;
  }
  const names = bases.map((base) => base.name);
  show(names.includes(choose) ? choose : (names[0] ?? null));
}

function show(name) {
  if (name !== chosen) {
    report();
    byId("contents").open = false;
  }
  chosen = name;
  const base = bases.find((one) => one.name === name);
  const items = bases.map((one) =>
    el(
      "li",
      {},
      el(
        "button",
        { type: "button", ariaCurrent: one.name === name ? "true" : "false", on: { click: () => show(one.name) } },
        el("span", { className: "base-name" }, one.name),
        el("span", { className: "quiet" }, figures(one)),
      ),
    ),
  );
  const hadFocus = byId("bases").contains(document.activeElement);
  byId("bases").replaceChildren(...items);
  if (hadFocus) byId("bases").querySelector("[aria-current=true]")?.focus();
  byId("bases-none").hidden = bases.length > 0 || fixed;
  byId("bases-off").hidden = bases.length > 0 || !fixed;
  byId("bases-only").hidden = !bases.length || !fixed;
  byId("base-make").hidden = fixed;
  byId("base").hidden = fixed && !base;
  byId("base-title").textContent = base ? base.name : "Add documents";
  byId("base-figures").textContent = base ? (base.problem ?? `${figures(base)} · key-values as ${base.codec}`) : "";
  byId("base-delete").hidden = !base || fixed;
  byId("contents").hidden = !base?.documents;
  changed(bases, base ?? null);
}

function figures({ documents, chunks, bytes, problem }) {
  if (problem) return "cannot be used";
  if (!documents) return "empty";
  return [counted(documents, "document"), counted(chunks, "part"), sized(bytes)].join(" · ");
}

async function create(name) {
  const chunk = byId("base-chunk").value;
  await request("POST", "v1/kb", chunk ? { name, chunk_tokens: Number(chunk) } : { name });
  await refreshBases(name);
  return name;
}

async function remove() {
  const base = bases.find((one) => one.name === chosen);
  byId("delete-title").textContent = `Delete ${base.name}?`;
  byId("delete-what").textContent =
    `${counted(base.documents, "document")} and all that was computed for them are removed. This cannot be undone.`;
  if ((await ask(byId("delete-dialog"))) !== "delete") return;
  try {
    await request("DELETE", path(base.name));
  } catch (error) {
    report(errorNote(error, remove));
    return;
  }
  await refreshBases();
  announce(`${base.name} is deleted.`);
  (byId("bases").querySelector("[aria-current=true]") ?? byId("files")).focus();
}

const path = (name, rest = "") => `v1/kb/${encodeURIComponent(name)}${rest}`;

// -- adding ----------------------------------------------------------------------------------------------------------

function acceptDrops(zone) {
  const over = (isOver) => zone.classList.toggle("over", isOver);
  // Beside the zone a browser would leave the page to show a file; nowhere on it is that what a reader wants.
  for (const type of ["dragover", "drop"]) window.addEventListener(type, (event) => event.preventDefault());
  zone.addEventListener("dragover", () => over(true));
  zone.addEventListener("dragleave", () => over(false));
  zone.addEventListener("drop", ({ dataTransfer }) => {
    over(false);
    const isFolder = (item) => item.webkitGetAsEntry?.()?.isDirectory;
    if ([...dataTransfer.items].some(isFolder)) {
      report(errorNote(new Error("A folder cannot be dropped: drop the files that it holds.")));
      return;
    }
    addFiles([...dataTransfer.files]);
  });
}

function addFiles(files) {
  if (!files.length) return;
  const form = new FormData();
  for (const file of files) form.append("files", file, file.name);
  add(form, counted(files.length, "file"));
}

async function addText() {
  const [id, text] = [byId("paste-name").value.trim(), byId("paste-text").value];
  const added = await add({ documents: [id ? { id, text } : { text }] }, "the text");
  if (added) byId("paste-form").reset();
}

/**
 * Send documents and watch them being read; true when none failed. The server tells of documents that are done, so
 * until the first ones are, the bar shows that it works and not how far it has come.
 */
async function add(body, what) {
  if (filling) {
    report(errorNote(new Error("Documents are being read already: wait until they are, or stop that.")));
    return false;
  }
  filling = new AbortController();
  report();
  progress(`Sending ${what}…`);
  let done = null;
  try {
    const name = chosen ?? (await create(byId("base-name").value.trim() || FIRST));
    const events = stream(path(name, "/documents?stream=true"), body, { signal: filling.signal });
    for await (const { data } of events) {
      if (data.documents_total === undefined) done = data;
      else if (!data.documents_done) progress(`Reading ${counted(data.documents_total, "document")}…`);
      else progress(`Read ${data.documents_done} of ${counted(data.documents_total, "document")}`, data);
    }
    await refreshBases(name);
    report(summary(done));
  } catch (error) {
    const stopped = error.name === "AbortError";
    await refreshBases();
    const note = stopped ? new Error("Stopped. What was read before is kept.") : error;
    report(errorNote(note, stopped ? undefined : () => add(body, what)));
  } finally {
    filling = null;
    byId("indexing").hidden = true;
  }
  if (byId("contents").open) listContents();
  return done !== null && done.failed === 0;
}

function progress(text, { documents_done: done, documents_total: total } = {}) {
  const bar = byId("indexing-bar");
  byId("indexing").hidden = false;
  byId("indexing-text").textContent = text;
  if (total) [bar.max, bar.value] = [total, done];
  else bar.removeAttribute("value");
}

function summary({ added, updated, skipped, failed, errors }) {
  const parts = [
    [added, "added"],
    [updated, "updated"],
    [skipped, "there already"],
    [failed, "not taken"],
  ];
  const said = parts.filter(([number]) => number).map(([number, what]) => `${number} ${what}`);
  return el(
    "div",
    { className: failed ? "note" : "note good" },
    el("p", {}, said.length ? `Done: ${said.join(", ")}.` : "There was nothing to add."),
    errors?.length
      ? el("ul", {}, ...errors.map(({ id, reason }) => el("li", {}, el("strong", {}, id), `: ${reason}`)))
      : null,
  );
}

function report(...nodes) {
  byId("report").replaceChildren(...nodes);
}

// -- what a knowledge base holds -------------------------------------------------------------------------------------

let last = null;

async function listContents(more = false) {
  const name = chosen;
  const list = byId("contents-list");
  const query = new URLSearchParams({ limit: PAGE, ...(more ? { after: last } : {}) });
  try {
    const { data, has_more: hasMore } = await request("GET", path(name, `/documents?${query}`));
    if (name !== chosen) return;
    if (!more) list.replaceChildren();
    list.append(...data.map((one) => contentsItem(name, one)));
    last = data.at(-1)?.id;
    byId("contents-more").hidden = !hasMore;
  } catch (error) {
    list.replaceChildren(el("li", {}, errorNote(error, listContents)));
  }
}

/** A document of the base `name`: it is removed from that one, also when another is looked at by then. */
function contentsItem(name, { id, chunks }) {
  const remove = async () => {
    try {
      await request("DELETE", path(name, "/documents"), { ids: [id] });
    } catch (error) {
      report(errorNote(error, remove));
      return;
    }
    const next = item.nextElementSibling ?? item.previousElementSibling;
    item.remove();
    (next?.querySelector("button") ?? byId("contents").querySelector("summary")).focus();
    announce(`${id} is removed.`);
    refreshBases();
  };
  const button = el("button", { type: "button", className: "plain", ariaLabel: `Remove ${id}` }, "Remove");
  button.addEventListener("click", remove);
  const quiet = el("span", { className: "quiet" }, counted(chunks, "part"));
  const item = el("li", {}, el("span", { className: "source-name", dir: "auto" }, id), quiet, button);
  return item;
}
