// Keep the screen connected: get a new ticket for each attempt, and schedule attempts.

import { Problem, ask, untilSilent } from "../requests_and_notices.js";
import { IDLE, next } from "./connection_state.js";

// A small one, for which the controller needs no database.
const FILE = new URL("../icon.svg", import.meta.url);

export class Link {
  /**
   * path       of the session in the API
   * screen     a Screen, or what opens and closes as it does
   * onChange   called with each new state of the connection
   */
  constructor({ path, key, screen, onChange }) {
    this.path = path;
    this.key = key;
    this.screen = screen;
    this.onChange = onChange;
    this.state = IDLE;
    this.timer = null;
    this.attempt = null;
  }

  /** Connect now, in any state. */
  connectAnew() {
    this.change({ kind: "anew" });
  }

  opened() {
    this.change({ kind: "opened", at: Date.now() });
  }

  lost({ code, reason }) {
    this.change({ kind: "lost", at: Date.now(), code, reason });
  }

  /** Take the open connection for a dead one if the controller does not even send a file. */
  async check() {
    try {
      await fetch(FILE, { cache: "no-store", signal: untilSilent() });
    } catch {
      if (this.state.phase === "connected") this.lost({ code: 0, reason: "" });
    }
  }

  end() {
    clearTimeout(this.timer);
    this.attempt?.abort();
    this.attempt = null;
    this.screen.close();
  }

  change(event) {
    const before = this.state;
    this.state = next(before, event);
    clearTimeout(this.timer);
    if (this.state.phase === "waiting") {
      this.timer = setTimeout(() => this.change({ kind: "connect" }), this.state.until - Date.now());
    }
    if (this.state.phase === "connecting" && this.state !== before) this.connect();
    this.onChange(this.state);
  }

  async connect() {
    this.end();
    const attempt = (this.attempt = new AbortController());
    try {
      const signal = AbortSignal.any([attempt.signal, untilSilent()]);
      const body = { purpose: "viewer" };
      const path = `${this.path}/tickets`;
      const { url } = await ask(path, { method: "POST", body, key: this.key, signal });
      if (!attempt.signal.aborted) this.screen.open(url);
    } catch (error) {
      if (attempt.signal.aborted) return;
      if (!(error instanceof Problem)) throw error;
      const { status, message } = error;
      this.change({ kind: "refused", at: Date.now(), status, reason: message });
    }
  }
}
