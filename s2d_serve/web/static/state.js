// Who is there: targets, draft, replicas.

import { element } from "./answer.js";

const WORDS = {
  ready: "ready",
  idle: "idle, starts when asked",
  waking: "starting, it was asked",
  loading: "loading",
  unavailable: "unavailable",
};

/** Write the service's state into the page: a badge in the header, a card for each model. */
export function showState(models, state, version) {
  const badge = document.getElementById("health");
  badge.textContent = state.ready ? "ready" : "not ready";
  badge.className = `badge ${state.ready ? "ready" : "loading"}`;
  const now = new Date().toLocaleTimeString();
  document.getElementById("state-lead").textContent =
    `s2d-serve ${version}, seen at ${now}; looked at again every ten seconds.`;
  const cards = models.map((model) => targetCard(model, state.targets[model.id]));
  const drafted = models.find((model) => model.s2d.draft);
  if (drafted) cards.unshift(draftCard(drafted.s2d.draft, state.draft));
  document.getElementById("cards").replaceChildren(...cards);
}

function draftCard(draft, state) {
  return card("Draft", state, [
    ["Weights", `${draft.name}, ${draft.dtype}`],
    ["Exits after layers", draft.exit_layers.join(", ")],
    ...replicaRows(draft.replicas),
  ]);
}

function targetCard(model, state) {
  const { weights, draft, replicas } = model.s2d;
  return card(model.id, state, [
    ["Weights", `${weights.name}, ${weights.dtype}`],
    ["Context", `${model.max_model_len} tokens`],
    ["Speculation", draft ? "with the draft" : "none: it decodes alone"],
    ...replicaRows(replicas),
  ]);
}

function replicaRows(replicas) {
  const rows = replicas.map(({ sequences, slots }, i) => [
    `Replica ${i + 1}`,
    `${sequences} of ${slots} slots in use`,
  ]);
  return rows.length ? rows : [["Replicas", "none"]];
}

function card(title, state, rows) {
  const badge = element("span", { className: `badge ${state}` }, WORDS[state] ?? state);
  const facts = rows.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value)),
  );
  return element(
    "article",
    { className: "card" },
    element("h2", {}, title, badge),
    element("dl", {}, ...facts),
  );
}
