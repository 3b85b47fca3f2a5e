// The page of one session: its state, where it comes from, and the parts that show it.

import { Problem, ask, clearNotice, sentence, showNotice, showProblem, textsOf, untilSilent } from "../requests_and_notices.js";
import { Bar } from "./bar.js";
import { Clipboard } from "./clipboard.js";
import { SESSION_OVER } from "./connection_state.js";
import { Cover } from "./screen_cover.js";
import { Heartbeat } from "./heartbeat.js";
import { Events } from "./event_stream.js";
import { openKey } from "./page_key.js";
import { watchKeys } from "./keyboard.js";
import { Link } from "./reconnect.js";
import { ToolLogin } from "./tool_login.js";
import { pauseSeconds } from "../retry_pauses.js";
import { Screen } from "./screen.js";
import { isComing, isLive } from "./boot_progress.js";
import { onWake } from "./wake_detection.js";
import { viewOf } from "./screen_cover_view.js";

const config = JSON.parse(document.getElementById("session-config").textContent);
const t = textsOf("session-texts");
const path = `/api/auth/session/${config.sessionId}`;
const element = (id) => document.getElementById(id);

class Page {
  constructor({ key, viewOnly }) {
    this.key = key;
    this.viewOnly = viewOnly;
    this.canStart = !key;
    this.session = null;
    this.queued = null;
    this.refusal = null;
    this.isReading = false;
    this.isStale = false;
    this.nextRead = null;
    this.failedReads = 0;
    this.warned = "";
    this.screen = new Screen(element("screen"), {
      label: t("screen"),
      viewOnly,
      onOpened: () => {
        this.clipboard.forget();
        this.link.opened();
      },
      onLost: (end) => this.link.lost(end),
      onCopied: (text) => this.clipboard.copied(text),
    });
    this.link = new Link({ path, key, screen: this.screen, onChange: () => this.connectionChanged() });
    this.bar = new Bar(this, t);
    this.cover = new Cover(t, {
      now: () => this.link.connectAnew(),
      again: () => this.link.connectAnew(),
      start: () => this.startAnother(),
    });
    this.login = new ToolLogin(this, t, config.tools);
    this.heartbeat = new Heartbeat(this, t, config.limits);
    this.clipboard = this.clipboardWithPanel();
    watchKeys(this.screen, {
      onReleased: () => this.bar.takeKeyboard(),
      onPasteKeys: (isControlHeld) => (this.clipboard.isControlHeld = isControlHeld),
    });
    this.events = new Events(`${path}/events`, key, {
      onEvent: (event) => this.heard(event),
      onRefused: (problem) => this.refuse(problem),
    });
    onWake(() => this.wake());
    setInterval(() => this.render(), 1000);
  }

  clipboardWithPanel() {
    const panel = {
      outgoing: element("outgoing"),
      incoming: element("incoming"),
      send: element("send-button"),
      take: element("take-button"),
    };
    return new Clipboard(this.screen, panel, (name) => this.bar.say(t(name)));
  }

  ask(suffix, options = {}) {
    return ask(path + suffix, { key: this.key, ...options });
  }

  /** Run an action of the user, and show its error if it fails. */
  async attempt(work) {
    try {
      clearNotice();
      return await work();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      showProblem(error);
      return null;
    }
  }

  async begin() {
    this.render();
    this.events.read();
    await this.refresh();
  }

  /** Read the session again: events only say that something changed. */
  async refresh() {
    this.isStale = true;
    if (this.isReading) return;
    this.isReading = true;
    try {
      while (this.isStale) {
        this.isStale = false;
        await this.read();
      }
    } finally {
      this.isReading = false;
    }
  }

  async read() {
    clearTimeout(this.nextRead);
    try {
      this.take(await this.ask("", { signal: untilSilent() }));
      this.failedReads = 0;
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if ([401, 403, 404].includes(error.status)) {
        this.refuse(error);
        return;
      }
      this.bar.say(sentence(error.message));
      const seconds = pauseSeconds(this.failedReads);
      this.failedReads += 1;
      this.nextRead = setTimeout(() => this.refresh(), seconds * 1000);
    }
  }

  take(session) {
    // The answer to an earlier request may come last: a session that has ended does not live again.
    if (this.session && !isLive(this.session) && isLive(session)) return;
    const wasComing = !this.session || isComing(this.session);
    this.session = session;
    this.login.sessionChanged(session);
    if (!this.viewOnly) this.warn(session.warnings);
    if (!isLive(session)) this.end();
    else if (wasComing && !isComing(session)) this.link.connectAnew();
    this.render();
  }

  /** Warn once when a quota is nearly used up, and again when it is used up. */
  warn(warnings) {
    const told = warnings.map(({ quota }) => `${quota.quota} ${quota.left > 0}`).join();
    if (told && told !== this.warned) showNotice(warnings.map(({ message }) => `${message}.`).join(" "));
    this.warned = told;
  }

  heard({ kind, data }) {
    if (kind === "queued") this.queued = data;
    else if (kind === "stage") this.queued = null;
    else if (kind === "login") this.login.heard();
    else if (kind === "unhealthy") this.bar.say(t("status.unhealthy", data));
    if (kind !== "over") this.refresh();
    this.render();
  }

  connectionChanged() {
    const { phase, code, reason } = this.link.state;
    if (phase === "over" && code !== SESSION_OVER) this.refuse(new Problem(code - 4000, reason));
    else if (phase === "over" || phase === "not-ready") this.refresh();
    if (phase === "connected" && document.activeElement === document.body) this.screen.focus();
    this.render();
  }

  refuse(problem) {
    this.refusal = problem;
    this.end();
    this.render();
  }

  end() {
    clearTimeout(this.nextRead);
    this.events.end();
    this.link.end();
    this.login.end();
    this.heartbeat.end();
  }

  /** Reconnect after sleep or a network outage, which close connections. */
  wake() {
    if (this.refusal || (this.session && !isLive(this.session))) return;
    this.events.wake();
    this.refresh();
    if (this.session && !isComing(this.session)) this.link.connectAnew();
  }

  startAnother() {
    return this.attempt(async () => {
      const body = { userId: config.userId, provider: this.session.provider };
      const { id } = await ask("/api/auth/start", { method: "POST", body });
      location.assign(`/session/${id}`);
    });
  }

  render() {
    const view = viewOf({ ...this, connection: this.link.state }, Date.now());
    this.cover.show(view);
    this.bar.show(view);
    this.heartbeat.show(view);
    this.login.panel.showCompletion();
  }
}

try {
  await new Page(await openKey(config)).begin();
} catch (error) {
  if (!(error instanceof Problem)) throw error;
  const view = viewOf({ refusal: error, canStart: false }, Date.now());
  new Cover(t, {}).show(view);
  element("status").dataset.kind = view.kind;
  element("status-text").textContent = t(`status.${view.kind}`);
}
