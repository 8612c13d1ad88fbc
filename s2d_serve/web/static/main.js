// The page's frame: views, settings, key, theme, errors.

import { apiKey, listModels, readState, readVersion } from "./api.js";
import { element } from "./answer.js";
import { startChat } from "./chat.js";
import { allOrigins, meaning } from "./origins.js";
import { startRace } from "./race.js";
import { showState } from "./state.js";

const REFRESH_MS = 5000;
const VIEWS = ["chat", "race", "state"];
const THEMES = ["auto", "light", "dark"];
const THEME = "s2d-theme";

const byId = (id) => document.getElementById(id);

/** What the views share. */
const app = {
  models: [],
  isBusy: false,

  /** The settings as fields of a request. */
  request() {
    const seed = byId("seed").value;
    return {
      model: byId("target").value,
      temperature: Number(byId("temperature").value),
      max_tokens: Number(byId("max-tokens").value),
      ...(seed === "" ? {} : { seed: Number(seed) }),
      speculation: { enabled: byId("speculate").checked },
    };
  },

  /** Whether they can be sent; what is wrong is shown where it is. */
  settingsAreValid: () => byId("settings").reportValidity(),

  exitLayers() {
    const model = app.models.find(({ id }) => id === byId("target").value);
    return model?.s2d.draft?.exit_layers ?? [];
  },

  setBusy(isBusy) {
    app.isBusy = isBusy;
    for (const id of ["send", "race-start"]) byId(id).disabled = isBusy;
  },

  announce: (text) => (byId("status").textContent = text),

  showError(error) {
    byId("error").textContent = error.message;
    byId("error").hidden = false;
    if (error.status === 401) openKey(true);
  },

  clearError: () => (byId("error").hidden = true),
};

async function refresh() {
  try {
    const [models, state, version] = await Promise.all([listModels(), readState(), readVersion()]);
    setModels(models);
    showState(models, state, version);
    return true;
  } catch (error) {
    byId("health").textContent = error.status === 401 ? "key needed" : "no answer";
    byId("health").className = "badge unavailable";
    app.showError(error);
    return false;
  }
}

function setModels(models) {
  const names = models.map(({ id }) => id);
  const isNew = names.join() !== app.models.map(({ id }) => id).join();
  app.models = models;
  if (isNew) {
    byId("target").replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  }
  showLegend();
}

function showLegend() {
  byId("legend").replaceChildren(
    ...allOrigins(app.exitLayers()).map((origin) => {
      const sample = element("span", { className: `token ${origin.style}` }, "token");
      sample.dataset.letter = origin.letter;
      return element("li", {}, sample, element("b", {}, origin.letter), ` ${origin.name}: ${meaning(origin)}`);
    }),
    element(
      "li",
      {},
      element("span", { className: "sample-rejected" }),
      " in the strip: a guess that the target did not take",
    ),
  );
}

function showView() {
  const asked = location.hash.slice(1);
  const view = VIEWS.includes(asked) ? asked : "chat";
  for (const id of VIEWS) byId(id).hidden = id !== view;
  byId("settings").hidden = view === "state";
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (view === "state") refresh();
}

function openKey(isOpen) {
  byId("key-form").hidden = !isOpen;
  byId("key-toggle").setAttribute("aria-expanded", String(isOpen));
  if (isOpen) byId("key").focus();
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `Theme: ${theme}`;
}

byId("key").value = apiKey.get();
byId("key-toggle").addEventListener("click", () => openKey(byId("key-form").hidden));
byId("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  apiKey.set(byId("key").value.trim());
  app.clearError();
  if (await refresh()) openKey(false);
});

setTheme(localStorage.getItem(THEME) ?? "auto");
byId("theme").addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
  localStorage.setItem(THEME, next);
  setTheme(next);
});

byId("letters").addEventListener("change", (event) => {
  document.body.classList.toggle("letters", event.target.checked);
});
byId("target").addEventListener("change", showLegend);
byId("settings").addEventListener("submit", (event) => event.preventDefault());
window.addEventListener("hashchange", showView);
setInterval(() => {
  if (!document.hidden && !byId("state").hidden && !app.isBusy) refresh();
}, REFRESH_MS);

startChat(app);
startRace(app);
showView();
if (byId("state").hidden) refresh();
