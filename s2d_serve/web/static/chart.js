// Tokens over time of the two runs of a race, as one small drawing.

import { element } from "./answer.js";
import { seconds } from "./counts.js";

const MAX_WIDTH = 900;
const HEIGHT = 160;
const MARGIN = { left: 40, right: 14, top: 12, bottom: 24 };

/** Draw both runs from a common start, as wide as the figure is. */
export function drawChart(figure, { off, on }) {
  figure.hidden = false;
  const width = Math.min(figure.clientWidth - 24, MAX_WIDTH);
  const maxS = Math.max(off.elapsedS, on.elapsedS);
  const maxTokens = Math.max(off.tokens, on.tokens);
  const x = (s) => MARGIN.left + (s / maxS) * (width - MARGIN.left - MARGIN.right);
  const y = (n) => HEIGHT - MARGIN.bottom - (n / maxTokens) * (HEIGHT - MARGIN.bottom - MARGIN.top);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img" });
  const told =
    `Tokens over time: with the draft ${on.tokens} in ${seconds(on.elapsedS)}, ` +
    `target alone ${off.tokens} in ${seconds(off.elapsedS)}.`;
  drawing.setAttribute("aria-label", told);
  drawing.append(
    svg("path", { d: `M${MARGIN.left} ${MARGIN.top}V${y(0)}H${x(maxS)}` }),
    label(MARGIN.left - 7, y(maxTokens) + 8, String(maxTokens), "end"),
    label(MARGIN.left - 7, y(0), "0", "end"),
    label(x(maxS), HEIGHT - 7, seconds(maxS), "end"),
    label(MARGIN.left, HEIGHT - 7, "tokens over time", "start"),
    ...line("off", off, x, y),
    ...line("on", on, x, y),
  );
  const names = element(
    "figcaption",
    {},
    element("span", { className: "on" }, "with the draft"),
    element("span", { className: "off" }, "target alone"),
  );
  figure.replaceChildren(names, drawing);
}

function line(style, run, x, y) {
  const points = run.progress.map(([s, tokens]) => `${x(s).toFixed(1)},${y(tokens).toFixed(1)}`);
  const end = svg("circle", { class: style, cx: x(run.elapsedS), cy: y(run.tokens), r: 3.5 });
  return [svg("polyline", { class: style, points: points.join(" ") }), end];
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
