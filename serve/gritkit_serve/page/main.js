// The page as a whole: which area is shown, how the server does, which models it has, and its key.

import { forgetKey, hasKey, onKeyNeeded, request } from "./api.js";
import { askFrom, startAsk } from "./ask.js";
import { refreshBases, startBases } from "./bases.js";
import { offerBases, startChat } from "./chat.js";
import { ask, byId, el } from "./dom.js";
import { startPlayground } from "./playground.js";

const AREAS = ["chat", "documents", "embeddings"];
const models = byId("model");

function showArea() {
  const wanted = location.hash.slice(1);
  const area = AREAS.includes(wanted) ? wanted : AREAS[0];
  for (const name of AREAS) {
    byId(`area-${name}`).hidden = name !== area;
    const link = document.querySelector(`nav a[href="#${name}"]`);
    if (name === area) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${byId(`${area}-title`).textContent} – gritkit`;
}

function showState(kind, text) {
  byId("state-dot").className = `dot ${kind}`;
  byId("state").textContent = text;
}

async function askForKey(refused) {
  byId("key-refused").hidden = !refused;
  byId("key").value = "";
  const used = (await ask(byId("key-dialog"))) === "use";
  const key = byId("key").value;
  byId("key").value = "";
  return used ? key : null;
}

function showKeyButton(text, isNeeded) {
  byId("key-change").textContent = text;
  byId("key-change").hidden = !isNeeded;
}

/** Names the models once the server is ready; until then it says what the server says and asks again. */
async function connect() {
  try {
    const { data } = await request("GET", "v1/models");
    models.replaceChildren(...data.map(({ id }) => el("option", { value: id }, id)));
    models.hidden = byId("model-label").hidden = data.length < 2;
    showState("good", data.length < 2 ? data[0].id : "Ready");
    showKeyButton("Forget the key", hasKey());
    await refreshBases();
  } catch (error) {
    showKeyButton("Enter the key", error.status === 401);
    showState("bad", error.status === 401 ? "No key" : error.retryAfter === null ? "Not reachable" : "Starting…");
    if (error.status !== 401) setTimeout(connect, 1000 * (error.retryAfter ?? 3));
  }
}

const server = { model: () => models.value || undefined }; // without a name it is the server's own
onKeyNeeded(askForKey);
startChat(server);
startAsk();
startPlayground(server);
startBases((bases, chosen) => {
  offerBases(bases.filter((base) => base.documents).map((base) => base.name));
  askFrom(chosen);
});
byId("key-change").addEventListener("click", () => {
  if (!hasKey()) return connect();
  forgetKey();
  location.reload();
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address names an area, not a place
  byId("main").focus();
});
window.addEventListener("hashchange", () => {
  showArea();
  byId("main").focus({ preventScroll: true });
});
showArea();
connect();
