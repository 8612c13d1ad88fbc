// The page's frame: views, settings, key, theme, errors.

import { apiKey, listModels, readState, readVersion } from "./api.js";
import { element } from "./answer.js";
import { startChat } from "./chat.js";
import { allOrigins, meaning } from "./origins.js";
import { startRace } from "./race.js";
import { showState } from "./state.js";

const REFRESH_MS = 10_000;
const VIEWS = ["chat", "race", "state"];
const THEMES = { auto: "Auto", light: "Light", dark: "Dark" };
const THEME = "s2d-theme";

const byId = (id) => document.getElementById(id);

/** What the views share. */
const app = {
  view: "chat",
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

/** Look at the service; `isQuiet`: nobody asked, so that the badge alone says what is wrong. */
async function refresh(isQuiet = false) {
  try {
    const [models, state, version] = await Promise.all([listModels(), readState(), readVersion()]);
    setModels(models);
    showState(models, state, version);
    return true;
  } catch (error) {
    byId("health").textContent = error.status === 401 ? "key needed" : "no answer";
    byId("health").className = "badge unavailable";
    if (!isQuiet) app.showError(error);
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
      const sample = element("span", { className: `token ${origin.style}` }, origin.name);
      return element("li", { title: meaning(origin) }, element("b", {}, origin.letter), sample);
    }),
    element("li", {}, element("i", { className: "sample-rejected" }), "rejected guess"),
  );
}

function showView() {
  const asked = location.hash.slice(1);
  if (VIEWS.includes(asked)) app.view = asked; // any other hash is a place in the view
  const { view } = app;
  for (const name of VIEWS) byId(`${name}-view`).hidden = name !== view;
  byId("settings").hidden = byId("legend").hidden = view === "state";
  byId("speculate-label").hidden = view !== "chat";
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
  byId("theme").textContent = THEMES[theme];
  byId("theme").setAttribute("aria-label", `Theme: ${theme}`);
}

byId("key").value = apiKey.get();
byId("key-toggle").addEventListener("click", () => openKey(byId("key-form").hidden));
byId("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  apiKey.set(byId("key").value.trim());
  app.clearError();
  if (await refresh()) openKey(false);
});

setTheme(localStorage.getItem(THEME) in THEMES ? localStorage.getItem(THEME) : "auto");
byId("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length];
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
  if (!document.hidden && !app.isBusy) refresh(true);
}, REFRESH_MS);

startChat(app);
startRace(app);
showView();
if (app.view !== "state") refresh();
