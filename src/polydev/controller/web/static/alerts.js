// Browser notifications of new alerts while the page is open, if the user turned them on.

import { textsOf } from "./requests_and_notices.js";

const t = textsOf("alert-texts");
const button = document.getElementById("notify");
const state = document.getElementById("notify-state");
const WANTED = "polydev-alerts";

function isWanted() {
  return localStorage.getItem(WANTED) === "on";
}

/** Ids of active alerts with their severity: a more severe one is notified again. */
function standing() {
  return new Map(
    [...document.querySelectorAll("[data-alert]")].map((alert) => [
      `${alert.dataset.alert} ${alert.dataset.severity}`,
      alert.dataset,
    ]),
  );
}

let known = standing();

function show() {
  if (!("Notification" in window) || !window.isSecureContext) {
    state.textContent = t("unsupported");
    return;
  }
  const permission = Notification.permission;
  const isOn = permission === "granted" && isWanted();
  button.hidden = permission === "denied";
  button.textContent = t(isOn ? "turn_off" : "turn_on");
  button.setAttribute("aria-pressed", String(isOn));
  if (permission === "denied") state.textContent = t("denied");
  else state.textContent = t(isOn ? "on" : "off");
}

button.addEventListener("click", async () => {
  const wasOn = Notification.permission === "granted" && isWanted();
  localStorage.setItem(WANTED, wasOn ? "off" : "on");
  if (!wasOn && Notification.permission === "default") await Notification.requestPermission();
  show();
});

document.addEventListener("htmx:afterSwap", () => {
  const now = standing();
  const isOn = "Notification" in window && Notification.permission === "granted" && isWanted();
  for (const [key, alert] of now) {
    if (!known.has(key) && isOn) {
      // With its id as a tag, several tabs show one notification.
      new Notification(t("notification", { severity: alert.severity, rule: alert.rule }), {
        body: alert.message,
        tag: `polydev-${key}`,
      });
    }
  }
  known = now;
});

show();
