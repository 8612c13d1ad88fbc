// An answer as it comes: coloured tokens, and the strip of its rounds.

import { committedOrigins, draftOrigin, meaning } from "./origins.js";
import { seconds } from "./counts.js";

/** A DOM element with properties and children. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  const { data = {}, ...own } = properties;
  Object.assign(made, own);
  Object.assign(made.dataset, data);
  made.append(...children);
  return made;
}

/** The rounds of one answer: its tokens in `box`, a column for each round in `strip`. */
export class Answer {
  /** `inspect(round, number, token, exitLayers)` is called when a person points at something. */
  constructor(exitLayers, inspect) {
    this.box = element("div", { className: "answer" });
    this.strip = element("div", { className: "strip" });
    this.exitLayers = exitLayers;
    this.inspect = inspect;
    this.rounds = [];
    this.decoder = new TextDecoder();
    this.box.setAttribute("role", "group");
    this.box.setAttribute("aria-label", "Answer; arrow keys go through its tokens");
    for (const place of [this.box, this.strip]) {
      place.addEventListener("mouseover", (event) => this.#point(event.target));
      place.addEventListener("focusin", (event) => this.#point(event.target));
      place.addEventListener("keydown", (event) => this.#walk(place, event));
    }
  }

  add(round) {
    const number = this.rounds.push(round);
    const origins = committedOrigins(round, this.exitLayers);
    const tokens = round.committed.map((token, i) => this.#token(token, origins[i], number, i));
    if (number === 1 && tokens.length) tokens[0].tabIndex = 0;
    this.box.append(...tokens);
    this.strip.append(this.#column(round, origins, number));
    this.strip.scrollLeft = this.strip.scrollWidth;
  }

  #token(token, origin, number, index) {
    const isSpecial = !token.bytes.length;
    const bytes = Uint8Array.from(token.bytes);
    const text = isSpecial ? token.token : this.decoder.decode(bytes, { stream: true });
    const data = { round: number, token: index, letter: origin.letter };
    const className = `token ${origin.style}${isSpecial ? " special" : ""}`;
    const made = element("span", { className, data, tabIndex: -1 }, text);
    if (text === "\n" || text === "\n\n") made.classList.add("break");
    return made;
  }

  #column(round, origins, number) {
    const label = `Round ${number}: ${outcome(round)}`;
    const data = { round: number };
    const tabIndex = number === 1 ? 0 : -1;
    const column = element("button", { type: "button", className: "column", data, tabIndex });
    column.setAttribute("aria-label", label);
    for (const origin of origins) column.append(element("i", { className: origin.style }));
    for (const guess of round.draft.slice(round.num_accepted)) {
      const { style } = draftOrigin(guess.exit, this.exitLayers);
      column.append(element("i", { className: `${style} rejected` }));
    }
    return column;
  }

  #point(target) {
    const place = target.closest?.("[data-round]");
    if (!place) return;
    const number = Number(place.dataset.round);
    for (const container of [this.box, this.strip]) {
      for (const item of container.querySelectorAll(".marked")) item.classList.remove("marked");
      for (const item of container.querySelectorAll(`[data-round="${number}"]`)) {
        item.classList.add("marked");
      }
    }
    const token = place.dataset.token === undefined ? null : Number(place.dataset.token);
    this.inspect(this.rounds[number - 1], number, token, this.exitLayers);
  }

  /** Arrow keys, Home and End go through tokens and rounds: one tab stop for all of them. */
  #walk(place, event) {
    const items = [...place.querySelectorAll("[data-round]")];
    const at = items.indexOf(event.target);
    if (at < 0) return;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: items.length - 1 }[event.key];
    if (to === undefined || !items[to]) return;
    event.preventDefault();
    items[at].tabIndex = -1;
    items[to].tabIndex = 0;
    items[to].focus();
  }
}

/** What a round came to, in words. */
export function outcome(round) {
  const drafted = round.draft.length;
  if (!drafted) return "the target decoded alone";
  return `${drafted} guessed, ${round.num_accepted} accepted`;
}

/** A token's text with its blanks made visible. */
export function visible(token) {
  return token.token.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣");
}

/** What the inspector says when nothing is pointed at. */
export function inspectNothing(place) {
  place.classList.remove("open");
  const hint = "Point at a token or a round, or go there with Tab and the arrow keys.";
  place.replaceChildren(element("p", { className: "hint" }, hint));
}

/** Write a round into the inspector: its guesses, which were wrong, and where its time went. */
export function inspectRound(place, round, number, index, exitLayers) {
  const origins = committedOrigins(round, exitLayers);
  const title = element("h3", {}, `Round ${number}`, element("small", {}, outcome(round)));
  const guesses = round.draft.map((guess, i) => {
    const { style, name } = draftOrigin(guess.exit, exitLayers);
    const verdict = i < round.num_accepted ? "accepted" : i === round.num_accepted ? "rejected" : "unread";
    const row = element("li", { className: verdict });
    row.append(element("code", { className: style }, visible(guess)), ` ${name}, `, verdictWords[verdict]);
    return row;
  });
  const close = element("button", { type: "button", className: "quiet close" }, "Close");
  close.addEventListener("click", () => inspectNothing(place));
  const parts = [close, title];
  if (guesses.length) parts.push(element("ol", { className: "guesses" }, ...guesses));
  if (origins.length > round.num_accepted) {
    const own = round.committed.at(-1);
    const style = origins.at(-1).style;
    const line = element("p", {}, "The target's own token: ", element("code", { className: style }, visible(own)));
    parts.push(line);
  }
  if (index !== null && origins[index]) {
    const { name } = origins[index];
    parts.push(element("p", { className: "hint" }, `This token: ${name}, ${meaning(origins[index])}.`));
  }
  const rest = Math.max(round.round_s - round.draft_s - round.verify_s, 0);
  parts.push(
    element(
      "p",
      { className: "times" },
      `${seconds(round.round_s)}: draft ${seconds(round.draft_s)}, verify ${seconds(round.verify_s)}, ` +
        `rest ${seconds(rest)}`,
    ),
  );
  place.classList.add("open");
  place.replaceChildren(...parts);
}

const verdictWords = {
  accepted: "accepted",
  rejected: "rejected",
  unread: "after the difference, dropped",
};
