// The host's page: its parts come anew every five seconds while somebody can see them.

import { clearNotice, showProblem, Problem, textsOf } from "./app.js";
import { startCharts } from "./charts.js";

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

/** Say how old the figures are, and above them if the controller does not answer. */
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

// A part that has not changed stays as it is: selected text, and what a screen reader has read.
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

// These figures have their own words for a controller that does not answer.
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
// htmx knows the page's elements from then on.
document.addEventListener("DOMContentLoaded", refresh);
