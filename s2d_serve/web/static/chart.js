// Tokens over time of the two runs of a race, as one small drawing.

import { seconds } from "./counts.js";

const WIDTH = 640;
const HEIGHT = 150;
const LEFT = 36;
const BOTTOM = 22;
const TOP = 8;
const RIGHT = 110;

/** Draw both runs from a common start, with their names at their ends. */
export function drawChart(figure, { off, on }) {
  const maxS = Math.max(off.elapsedS, on.elapsedS);
  const maxTokens = Math.max(off.tokens, on.tokens);
  const x = (s) => LEFT + (s / maxS) * (WIDTH - LEFT - RIGHT);
  const y = (tokens) => HEIGHT - BOTTOM - (tokens / maxTokens) * (HEIGHT - BOTTOM - TOP);
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  const told =
    `Tokens over time: with the draft ${on.tokens} in ${seconds(on.elapsedS)}, ` +
    `alone ${off.tokens} in ${seconds(off.elapsedS)}.`;
  drawing.setAttribute("aria-label", told);
  drawing.append(
    svg("path", { class: "axis", d: `M${LEFT} ${TOP}V${y(0)}H${x(maxS)}` }),
    label(LEFT - 6, y(maxTokens) + 8, String(maxTokens), "end"),
    label(LEFT - 6, y(0), "0", "end"),
    label(x(maxS), HEIGHT - 6, seconds(maxS), "end"),
    label(LEFT, HEIGHT - 6, "tokens over time", "start"),
  );
  for (const [name, style, run] of [
    ["target alone", "off", off],
    ["with the draft", "on", on],
  ]) {
    const points = run.progress.map(([s, tokens]) => `${x(s).toFixed(1)},${y(tokens).toFixed(1)}`);
    drawing.append(svg("polyline", { class: style, points: points.join(" ") }));
    const [endS, endTokens] = run.progress.at(-1);
    const isFast = run.elapsedS < maxS;
    drawing.append(svg("circle", { class: style, cx: x(endS), cy: y(endTokens), r: 3.5 }));
    drawing.append(
      isFast
        ? label(x(endS) - 8, y(endTokens) + 5, name, "end")
        : label(x(endS) + 8, y(endTokens) + 5, name, "start"),
    );
  }
  figure.replaceChildren(drawing);
  figure.hidden = false;
}

function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function label(x, y, text, anchor) {
  const made = svg("text", { x, y, "text-anchor": anchor });
  made.textContent = text;
  return made;
}
