// The charts of the last 24 hours: loaded once a minute while somebody can see them.

import { ask, textsOf } from "./app.js";
import { chartsOf } from "./chart_list.js";
import { Chart } from "./chart.js";

const EVERY_MS = 60000;
const PATH = "/admin/charts.json";

/** Start loading; the answer's `reload` does so at once. */
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
      let chart = charts.get(wanted.id);
      if (!chart) {
        chart = new Chart(place, wanted, say);
        charts.set(wanted.id, chart);
      }
      chart.show(wanted, columns.at, hours());
    }
    state.hidden = columns.at.length > 0;
    state.textContent = say("none");
    measureDrawing(columns.at.length);
  }

  async function load() {
    clearTimeout(timer);
    timer = setTimeout(load, EVERY_MS);
    if (document.hidden) return;
    try {
      show(await ask(PATH));
    } catch (error) {
      state.hidden = false;
      state.textContent = say("failed", { detail: error.message });
    }
  }

  range.addEventListener("change", () => {
    for (const chart of charts.values()) chart.zoom(hours());
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const chart of charts.values()) chart.redraw();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && charts.size === 0) load();
  });
  load();
  return { reload: load };
}

/** Note how long drawing took, and how many frames passed until all was on the screen. */
function measureDrawing(points) {
  let frames = 0;
  const count = () => {
    frames += 1;
    if (document.querySelectorAll("#charts .chart:not(.is-drawn)").length > 0) {
      requestAnimationFrame(count);
      return;
    }
    performance.measure("charts-drawn", { start: "charts-begin", detail: { frames, points } });
  };
  requestAnimationFrame(count);
}
