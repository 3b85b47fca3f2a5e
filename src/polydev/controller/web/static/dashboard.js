// The host's page, whose parts are reloaded every five seconds while it is visible.

import { clearNotice, showProblem, Problem, textsOf } from "./requests_and_notices.js";
import { startCharts } from "./day_charts.js";

const EVERY_MS = 5000;
const LOST_AFTER_MS = 8000;

const say = textsOf("dashboard-texts");
const live = document.getElementById("live");
const lost = document.getElementById("lost");
const age = document.getElementById("age");
const charts = startCharts();

let updatedAt = performance.now();
let timer = 0;
let isSignedOut = false;

function spanText(milliseconds) {
  const seconds = Math.round(milliseconds / 1000);
  if (seconds < 120) return say("seconds", { count: seconds });
  return say("minutes", { count: Math.round(seconds / 60) });
}

/** Show the age of the values, and a warning if the controller does not answer. */
function showAge() {
  const old = performance.now() - updatedAt;
  age.textContent = old < 2000 ? say("now") : say("ago", { span: spanText(old) });
  const isLost = old > LOST_AFTER_MS && !document.hidden;
  const words = isLost ? say("lost", { span: spanText(old) }) : "";
  if (lost.textContent !== words) lost.textContent = words;
  lost.hidden = !isLost;
  live.classList.toggle("old", isLost);
}

function refresh() {
  clearTimeout(timer);
  if (!document.hidden && !isSignedOut) htmx.trigger(live, "refresh");
}

function refreshLater() {
  clearTimeout(timer);
  timer = setTimeout(refresh, EVERY_MS);
}

// Unchanged parts are kept, so that selections and screen readers are not disturbed.
document.addEventListener("htmx:oobBeforeSwap", (event) => {
  const { target, fragment } = event.detail;
  if (fragment.innerHTML === target.innerHTML) event.detail.shouldSwap = false;
});

live.addEventListener("htmx:afterRequest", (event) => {
  if (event.detail.successful) {
    if (lost.hidden === false) charts.reload();
    updatedAt = performance.now();
    clearNotice();
    showAge();
  }
  refreshLater();
});

// This page has its own message for a controller that does not answer.
for (const silence of ["htmx:sendError", "htmx:timeout"]) {
  live.addEventListener(silence, (event) => event.stopPropagation());
}

live.addEventListener("htmx:responseError", (event) => {
  const { status, statusText } = event.detail.xhr;
  if (status === 401) {
    isSignedOut = true;
    showProblem(new Problem(status, statusText));
  }
  event.stopPropagation();
});

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) refresh();
});

setInterval(showAge, 1000);
showAge();
// htmx has processed the page's elements by then.
document.addEventListener("DOMContentLoaded", refresh);
