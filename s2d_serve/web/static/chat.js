// The playground: a chat with a target whose rounds are shown as they come.

import { streamChat } from "./api.js";
import { Answer, element, inspectNothing, inspectRound } from "./answer.js";
import { Counts, shown } from "./counts.js";

const FOLLOWED_PX = 60; // an answer that a person has scrolled away from is left alone

const byId = (id) => document.getElementById(id);

/** Wires the playground up; `app` gives settings, exits and a place for errors. */
export function startChat(app) {
  const log = byId("log");
  const message = byId("message");
  const inspector = byId("inspector");
  let turns = [];
  let running = null;

  clearSide();

  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  message.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    running?.abort();
    inspectNothing(inspector);
  });
  byId("stop").addEventListener("click", () => running?.abort());
  byId("new-chat").addEventListener("click", () => {
    running?.abort();
    turns = [];
    log.replaceChildren();
    byId("welcome").hidden = false;
    clearSide();
    message.focus();
  });

  function clearSide() {
    byId("strip").replaceChildren(element("div", { className: "strip" }));
    showCounts(byId("chat-counts"), new Counts());
    inspectNothing(inspector);
  }

  async function send() {
    const text = message.value.trim();
    if (!text || running || !app.settingsAreValid()) return;
    app.clearError();
    message.value = "";
    const asked = [...turns, { role: "user", content: text }];
    byId("welcome").hidden = true;
    log.append(element("div", { className: "turn user" }, text));
    const inspect = (...round) => inspectRound(inspector, ...round);
    const answer = new Answer(app.exitLayers(), inspect);
    const { box } = answer;
    box.classList.add("turn", "target");
    log.append(box);
    byId("strip").replaceChildren(answer.strip);
    follow(box);
    setRunning(new AbortController());
    try {
      const written = await stream(answer, asked);
      turns = [...asked, { role: "assistant", content: written }];
    } catch (error) {
      if (!box.isConnected) return; // another chat has begun
      if (error.name !== "AbortError") app.showError(error);
      if (!box.childElementCount) {
        box.remove();
        log.lastElementChild.remove();
        message.value = text;
      } else {
        turns = [...asked, { role: "assistant", content: box.textContent }];
      }
    } finally {
      setRunning(null);
    }
  }

  async function stream(answer, messages) {
    const { box } = answer;
    const request = { ...app.request(), messages };
    const counts = new Counts();
    let written = "";
    app.announce("The answer is being written.");
    for await (const body of streamChat(request, running.signal)) {
      written += body.choices[0]?.delta.content ?? "";
      const isFollowed = hiddenPx(box) < FOLLOWED_PX;
      for (const round of body.s2d?.rounds ?? []) {
        answer.add(round);
        counts.add(round);
      }
      if (isFollowed) follow(box);
      showCounts(byId("chat-counts"), counts);
    }
    app.announce(`The answer is complete: ${counts.tokens} tokens in ${counts.rounds} rounds.`);
    return written;
  }

  function setRunning(controller) {
    running = controller;
    byId("send").hidden = Boolean(controller);
    byId("stop").hidden = !controller;
    app.setBusy(Boolean(controller));
  }
}

/** By how much an answer's end is below the composer's upper edge. */
function hiddenPx(box) {
  return box.getBoundingClientRect().bottom - byId("composer").getBoundingClientRect().top;
}

/** Keep an answer's end in sight. */
function follow(box) {
  if (hiddenPx(box) > 0) scrollBy(0, hiddenPx(box) + 8);
}

/** Fill a description list with counts. */
export function showCounts(list, counts) {
  list.replaceChildren(
    ...shown(counts).map(([name, value, title]) =>
      element("div", { title }, element("dt", {}, name), element("dd", {}, value)),
    ),
  );
}
