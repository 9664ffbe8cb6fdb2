// Elements, made from text alone: nothing here or elsewhere on the page turns text into markup.
// Knows nothing about the server.

const SVG = "http://www.w3.org/2000/svg";

/** The element with this id; the page's own, so it is there. */
export const byId = (id) => document.getElementById(id);

/** A new element. Properties that elements lack are attributes; `on` holds listeners; children are nodes or text. */
export function el(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

/** The same for SVG, where everything is an attribute. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    } else if (value !== undefined && value !== null) {
      if (node.namespaceURI !== SVG && name in node) node[name] = value;
      else node.setAttribute(name, value);
    }
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Append to what is said, without the space or line that models like to begin with. */
export function appendText(node, text) {
  const shown = node.hasChildNodes() ? text : text.trimStart();
  if (shown) node.append(shown);
}

/** Say something to those who listen instead of look. */
export function announce(text) {
  byId("announcer").textContent = text;
}

/** Show the button that stops in place of the one that starts, or the other way; the focus goes along. */
export function swap(start, stop, isRunning) {
  const [shown, gone] = isRunning ? [stop, start] : [start, stop];
  const hadFocus = document.activeElement === gone;
  shown.hidden = false;
  if (hadFocus) shown.focus();
  gone.hidden = true;
}

/** A modal dialog; resolves to the value of the button that closed it, "" when it was dismissed. */
export function ask(dialog) {
  dialog.returnValue = "";
  dialog.querySelector(".cancel").onclick = () => dialog.close("");
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
  });
}

/**
 * An error as a sentence in a note, with a button that tries again; where the server said when, not before.
 * Nothing is shown for what the reader stopped.
 */
export function errorNote(error, again) {
  const button = again && el("button", { type: "button", on: { click: () => again() } }, "Try again");
  const note = el("div", { className: "note", role: "alert" }, el("p", {}, error.message));
  if (button) note.append(button);
  if (button && error.retryAfter) {
    button.disabled = true;
    const until = Date.now() + 1000 * error.retryAfter;
    const tick = () => {
      const left = Math.ceil((until - Date.now()) / 1000);
      button.disabled = left > 0;
      button.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
      if (left > 0 && note.isConnected) setTimeout(tick, 250);
    };
    queueMicrotask(tick);
  }
  return note;
}

const COUNT = new Intl.NumberFormat("en");

/** "1 document", "1,204 documents". */
export function counted(number, noun) {
  return `${COUNT.format(number)} ${noun}${number === 1 ? "" : "s"}`;
}

/** "3.2 MB" of bytes. */
export function sized(bytes) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; bytes >= 1000 && unit < units.length - 1; unit++) bytes /= 1000;
  return `${unit && bytes < 100 ? bytes.toFixed(1) : COUNT.format(Math.round(bytes))} ${units[unit]}`;
}

/** "0.8 ms", "12 ms", "1.4 s" of milliseconds. */
export function timed(ms) {
  if (ms >= 10_000) return `${Math.round(ms / 1000)} s`;
  if (ms >= 1000) return `${(ms / 1000).toFixed(1)} s`;
  return `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
}

/** A text cut to so many characters, whole ones. */
export function shortened(text, length) {
  const characters = [...text.trim().replace(/\s+/gu, " ")];
  return characters.length > length ? `${characters.slice(0, length - 1).join("").trimEnd()}…` : characters.join("");
}
