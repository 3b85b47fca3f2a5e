// The charts of the last 24 hours, loaded once a minute while the page is visible.

import { ask, sentence, textsOf } from "./requests_and_notices.js";
import { chartsOf } from "./chart_definitions.js";
import { Chart, readColours } from "./chart.js";

const EVERY_MS = 60000;
const PATH = "/admin/charts.json";

/** Start loading. Return an object whose `reload` loads at once. */
export function startCharts() {
  const say = textsOf("charts-texts");
  const place = document.getElementById("charts");
  const state = document.getElementById("charts-state");
  const range = document.getElementById("range");
  const charts = new Map();
  let timer = 0;

  function hours() {
    return Number(range.querySelector("input:checked").value);
  }

  function show(columns) {
    performance.mark("charts-begin");
    for (const wanted of chartsOf(columns, say)) {
      if (!charts.has(wanted.id)) charts.set(wanted.id, new Chart(place, wanted, say));
      charts.get(wanted.id).take(wanted, columns.at, hours());
    }
    draw();
    state.hidden = columns.at.length > 0;
    state.textContent = say("none");
    measureDrawing(columns.at.length);
  }

  function draw(isAnew) {
    const colours = readColours();
    for (const chart of charts.values()) chart.measure();
    for (const chart of charts.values()) chart.draw(colours, isAnew);
  }

  async function load() {
    clearTimeout(timer);
    timer = setTimeout(load, EVERY_MS);
    if (document.hidden) return;
    try {
      show(await ask(PATH));
    } catch (error) {
      state.hidden = false;
      state.textContent = say("failed", { detail: sentence(error.message) });
    }
  }

  range.addEventListener("change", () => {
    for (const chart of charts.values()) chart.zoom(hours());
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    draw(true);
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && charts.size === 0) load();
  });
  load();
  return { reload: load };
}

/** Record how long drawing took, and how many frames passed until all was visible. */
function measureDrawing(points) {
  let frames = 0;
  queueMicrotask(() => performance.mark("charts-end")); // after uPlot's own, which draw
  const count = () => {
    frames += 1;
    if (document.querySelectorAll("#charts .chart:not(.is-drawn)").length > 0) {
      requestAnimationFrame(count);
      return;
    }
    const span = { start: "charts-begin", end: "charts-end" };
    performance.measure("charts-drawn", { ...span, detail: { frames, points } });
  };
  requestAnimationFrame(count);
}
