// The race: one prompt, one seed, the target alone and then with the draft.

import { streamChat } from "./api.js";
import { Answer, element, inspectNothing, inspectRound } from "./answer.js";
import { drawChart } from "./chart.js";
import { showCounts } from "./chat.js";
import { Counts, seconds } from "./counts.js";

const WARM_UP_TOKENS = 8;

const byId = (id) => document.getElementById(id);

/** Wires the race up. */
export function startRace(app) {
  const verdict = byId("verdict");
  const chart = byId("race-chart");
  const lanes = { off: byId("lane-off"), on: byId("lane-on") };
  const inspector = byId("race-inspector");
  let running = null;

  inspectNothing(inspector);
  for (const lane of Object.values(lanes)) showCounts(lane.querySelector("dl"), new Counts());

  byId("race-stop").addEventListener("click", () => running?.abort());
  byId("race-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running || !app.settingsAreValid()) return;
    app.clearError();
    setRunning(new AbortController());
    try {
      await race();
    } catch (error) {
      verdict.hidden = true;
      if (error.name !== "AbortError") app.showError(error);
    } finally {
      setRunning(null);
    }
  });

  async function race() {
    const asked = app.request();
    const request = {
      ...asked,
      seed: asked.seed ?? Math.floor(Math.random() * 2 ** 31),
      messages: [{ role: "user", content: byId("race-prompt").value }],
    };
    chart.hidden = true;
    inspectNothing(inspector);
    for (const lane of Object.values(lanes)) {
      lane.querySelector(".answer-box").replaceChildren();
      showCounts(lane.querySelector("dl"), new Counts());
    }
    say("", "A short warm-up …");
    for (const enabled of [false, true]) await warmUp({ ...request, speculation: { enabled } });
    say("", "The target runs alone …");
    const off = await run(lanes.off, { ...request, speculation: { enabled: false } });
    say("", "Now the same with the draft …");
    const on = await run(lanes.on, { ...request, speculation: { enabled: true } });
    judge(off, on, request.seed);
  }

  async function warmUp(request) {
    const short = { ...request, max_tokens: Math.min(request.max_tokens, WARM_UP_TOKENS) };
    for await (const _ of streamChat(short, running.signal));
  }

  async function run(lane, request) {
    const inspect = (...round) => inspectRound(inspector, ...round);
    const answer = new Answer(app.exitLayers(), inspect);
    lane.querySelector(".answer-box").replaceChildren(answer.box);
    const counts = new Counts();
    let text = "";
    lane.classList.add("running");
    try {
      for await (const body of streamChat(request, running.signal)) {
        text += body.choices[0]?.delta.content ?? "";
        for (const round of body.s2d?.rounds ?? []) {
          answer.add(round);
          counts.add(round);
        }
        showCounts(lane.querySelector("dl"), counts);
      }
    } finally {
      lane.classList.remove("running");
    }
    return { text, counts };
  }

  function judge(off, on, seed) {
    const times = `${seconds(on.counts.elapsedS)} with the draft, ${seconds(off.counts.elapsedS)} without`;
    const speedup = off.counts.elapsedS / on.counts.elapsedS;
    drawChart(chart, { off: off.counts, on: on.counts });
    if (off.text === on.text && !on.counts.drafted) {
      say(
        "same",
        "Identical text, but nothing was drafted",
        `The draft saw no gain in it here, so any difference in time is chance. ${times}; ` +
          `${on.counts.tokens} tokens, seed ${seed}.`,
      );
      return;
    }
    if (off.text === on.text) {
      const pace = speedup >= 1 ? `${speedup.toFixed(2)} times as fast` : `at ${speedup.toFixed(2)} of the speed`;
      say("same", `Identical text, ${pace}`, `${times}; ${on.counts.tokens} tokens, seed ${seed}.`);
      return;
    }
    const at = [...off.text].findIndex((char, i) => char !== [...on.text][i]);
    const from = at < 0 ? off.text.length : at;
    const excerpt = (text) => `“${[...text].slice(Math.max(from - 12, 0), from + 24).join("")}”`;
    say(
      "differs",
      `The texts differ from character ${from + 1} on`,
      `Alone: ${excerpt(off.text)}. With the draft: ${excerpt(on.text)}. In bfloat16 a near-tie can ` +
        `tip with the shape of a batch; in float32 this should not happen. ${times}.`,
    );
  }

  function say(kind, headline, more = "") {
    verdict.className = `verdict ${kind}`;
    verdict.hidden = false;
    verdict.replaceChildren(element("strong", {}, headline), element("span", {}, more));
  }

  function setRunning(controller) {
    running = controller;
    byId("race-start").hidden = Boolean(controller);
    byId("race-stop").hidden = !controller;
    app.setBusy(Boolean(controller));
  }
}
