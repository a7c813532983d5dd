// Keeps the page of `silotune watch` up to date and carries the chat. What comes from the run is set as text, never as
// HTML, but for the page's own part, which the server has escaped and in which no script may run (see the page's policy).
"use strict";

const byId = (id) => document.getElementById(id);
const make = (tag, name, text = "") => {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.textContent = text;
  return made;
};
const put = (element, text) => { if (element.textContent !== text) element.textContent = text; };

// ---------------------------------------------------------------------------------------------------- the page

let version = byId("report").dataset.version;

const refresh = async () => {
  const answer = await fetch("/main");
  if (!answer.ok) return;
  const html = await answer.text();
  const main = byId("report");
  const open = [...main.querySelectorAll("details[open]")].map((each) => each.id);
  const focused = main.contains(document.activeElement) ? document.activeElement.closest("details")?.id : null;
  const top = window.scrollY;
  main.innerHTML = html;
  for (const id of open) if (byId(id)) byId(id).open = true;
  if (focused) byId(focused)?.querySelector("summary")?.focus({ preventScroll: true });
  window.scrollTo({ top, behavior: "instant" });
  version = answer.headers.get("x-version");
};

const describe = (silo) => silo.doing === "training"
  ? `step ${silo.step} of ${silo.steps}, loss ${silo.loss.toFixed(3)}, ${silo.rate} tokens/s` : silo.doing;

const showSilos = (silos) => {
  byId("live-silos").replaceChildren(...silos.map((silo) => {
    const line = make("div", "");
    line.append(make("span", "name", silo.silo), make("span", "soft", describe(silo)));
    line.firstChild.title = silo.silo;
    const bar = make("progress", "");
    bar.max = silo.steps ?? 1;
    bar.value = silo.doing === "training" ? silo.step : silo.doing === "waiting" ? 0 : bar.max;
    bar.setAttribute("aria-label", `${silo.silo}: ${describe(silo)}`);
    line.append(bar);
    return line;
  }));
};

const show = (status) => {
  byId("live-dot").className = `dot ${status.state}`;
  put(byId("live-words"), status.words);
  showSilos(status.silos);
  const { speaker, slows } = status.chat;
  const note = !speaker ? "There is no tuned model yet: the first round must be saved before it can be asked."
    : `It speaks with ${speaker}; the likeliest token each time. The first answer takes longest: the model is loaded then.`
      + (slows ? " The run goes on: answers share this machine with the training and slow it." : "");
  put(byId("chat-note"), note);
  canSpeak = Boolean(speaker);
  buttons();
};

const look = async () => {
  let pause = 2000;
  try {
    const answer = await fetch("/status");
    if (!answer.ok) throw new Error(await answer.text());
    const status = await answer.json();
    show(status);
    if (status.version !== version) await refresh();
    if (status.state !== "running") pause = 10000;
  } catch (error) {
    byId("live-dot").className = "dot lost";
    put(byId("live-words"), error instanceof TypeError ? "No answer from silotune watch; trying again." : error.message);
  }
  window.setTimeout(look, document.hidden ? 10000 : pause);
};

// ---------------------------------------------------------------------------------------------------- the chat

let canSpeak = false;
let asking = null;
let history = [];

const buttons = () => {
  byId("chat-ask").disabled = !canSpeak || Boolean(asking);
  byId("chat-stop").disabled = !asking;
};

const box = (question) => {
  const made = make("div", "sample");
  made.append(make("p", "label", "Question"), make("p", "", question));
  const pair = make("div", "pair");
  const places = {};
  for (const [name, title] of [["base", "Base model"], ["tuned", "Tuned model"]]) {
    const side = make("div", name);
    places[name] = make("p", "", "…");
    side.append(make("p", "label", title), places[name]);
    pair.append(side);
  }
  made.append(pair);
  byId("chat-log").append(made);
  made.scrollIntoView({ block: "nearest" });
  return { made, places };
};

const read = async (answer, hear) => {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    lines.forEach((line) => hear(JSON.parse(line)));
  }
};

const ask = async (question) => {
  const { made, places } = box(question);
  const said = { base: "", tuned: "" };
  const wrong = (text) => made.append(make("p", "bad", text));
  asking = new AbortController();
  buttons();
  let whole = false;
  try {
    const body = JSON.stringify({ question, history });
    const answer = await fetch("/chat", { method: "POST", headers: { "Content-Type": "application/json" }, body,
      signal: asking.signal });
    if (!answer.ok) throw new Error((await answer.text()).trim());
    await read(answer, (piece) => {
      if (piece.error) return wrong(piece.error);
      if (piece.done) { whole = true; return undefined; }
      said[piece.model] += piece.text;
      places[piece.model].textContent = said[piece.model];
      return undefined;
    });
  } catch (error) {
    if (error.name !== "AbortError") wrong(error instanceof TypeError ? "The connection was lost." : error.message);
  }
  asking = null;
  for (const name of ["base", "tuned"]) if (!said[name].trim()) places[name].textContent = whole ? "(no answer)" : "";
  if (whole) history.push({ question, base: said.base.trim() || "...", tuned: said.tuned.trim() || "..." });
  buttons();
};

byId("chat-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = byId("chat-question").value.trim();
  if (!question || asking || !canSpeak) return;
  byId("chat-question").value = "";
  ask(question);
});
byId("chat-question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("chat-form").requestSubmit();
  }
});
byId("chat-stop").addEventListener("click", () => asking?.abort());
byId("chat-again").addEventListener("click", () => {
  asking?.abort();
  history = [];
  byId("chat-log").replaceChildren();
  byId("chat-question").focus();
});

look();
