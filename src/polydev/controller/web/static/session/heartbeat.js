// Send heartbeats to the controller, and warn the user before the session ends.

import { untilSilent } from "../requests_and_notices.js";
import { clock, countdown } from "./countdown.js";

const element = (id) => document.getElementById(id);
const MOST_BEAT_SECONDS = 60;
// A hidden warning is shown again then.
const LAST_SECONDS = 60;

export class Heartbeat {
  constructor(page, t, limits) {
    this.page = page;
    this.t = t;
    this.limits = limits;
    this.skew = limits.now - Date.now();
    this.isPutAway = false;
    element("stay-button").addEventListener("click", () => this.stay());
    element("later-button").addEventListener("click", () => this.putAway());
    const seconds = Math.min(MOST_BEAT_SECONDS, limits.idleSeconds / 4);
    this.timer = setInterval(() => this.beat(), seconds * 1000);
  }

  /** An open screen counts as use without heartbeats; only read the session's end again. */
  async beat() {
    if (document.hidden || !this.page.session) return;
    if (this.page.viewOnly || this.page.link.state.phase === "given-up") await this.page.refresh();
    else await this.stay(true);
  }

  async stay(isQuiet = false) {
    const signal = untilSilent();
    const ask = () => this.page.ask("/heartbeat", { method: "POST", signal });
    const session = isQuiet ? await ask().catch(() => null) : await this.page.attempt(ask);
    if (signal.aborted) this.page.link.check();
    if (session) this.page.take(session);
    else await this.page.refresh();
  }

  putAway() {
    this.isPutAway = true;
    this.page.render();
    this.page.screen.focus();
  }

  end() {
    clearInterval(this.timer);
    element("countdown").hidden = true;
  }

  show({ kind }) {
    const { session, viewOnly } = this.page;
    const isLive = ["screen", "connecting", "lost", "given-up"].includes(kind);
    const soon = isLive ? countdown(session, this.limits, Date.now() + this.skew) : null;
    if (soon === null) this.isPutAway = false;
    const isShown = soon !== null && (!this.isPutAway || soon.seconds <= LAST_SECONDS);
    element("countdown").hidden = !isShown;
    if (!isShown) return;
    const canStay = soon.canStay && !viewOnly;
    element("stay-button").hidden = !canStay;
    const words = this.t(canStay ? "countdown.ends" : viewOnly ? "countdown.of_owner" : "countdown.last");
    if (element("countdown-words").textContent !== words) element("countdown-words").textContent = words;
    element("countdown-clock").textContent = clock(soon.seconds);
  }
}
