// The login of the session's tool, beside its screen: asks how far it is, and does what the user
// wants done.

import { Problem } from "../app.js";
import { NONE, afterAnswer, afterSession, asksAgainSeconds } from "./login.js";
import { LoginPanel } from "./login_panel.js";
import { isComing } from "./progress.js";

// The user has something to do or to know that is not on the screen.
const OPENS_PANEL = ["failed", "handed_over", "injected"];

export class ToolLogin {
  /** `tools` is what people call the tool of each provider. */
  constructor(page, t, tools) {
    this.page = page;
    this.login = NONE;
    this.timer = null;
    this.isOver = false;
    this.question = new AbortController();
    this.isKnown = false;
    this.panel = new LoginPanel(page, t, tools, {
      start: () => this.start(),
      sendCode: (code) => this.sendCode(code),
    });
  }

  sessionChanged(session) {
    this.isKnown = !isComing(session);
    this.become(afterSession(this.login, session));
  }

  get isFollowed() {
    return !this.isOver && !this.page.viewOnly;
  }

  /** The events tell of a login's progress; what it is now, the API. */
  heard() {
    if (this.isFollowed && this.login.state !== "none") this.ask();
  }

  /** The first question starts the tool; one that failed is started again by another method. */
  async start() {
    const method = this.login.state === "failed" ? "POST" : "GET";
    this.become({ ...NONE, state: "starting" });
    await this.ask(method);
  }

  async ask(method = "GET") {
    const { signal } = this.question;
    try {
      const answer = await this.page.ask("/oauth-url", { method, signal });
      this.become(afterAnswer(this.login, answer, null), true);
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof Problem)) throw error;
      this.become(afterAnswer(this.login, null, error), true);
    }
  }

  /** Whether the tool has got the code; what keeps it from that is told. */
  async sendCode(code) {
    const send = () => this.page.ask("/oauth-code", { method: "POST", body: { code } }).then(() => true);
    const isSent = await this.page.attempt(send);
    if (isSent) await this.ask();
    return isSent;
  }

  become(login, wasAsked = false) {
    const isNew = login.state !== this.login.state;
    const hasNews = ["deviceCode", "words"].some((name) => login[name] && login[name] !== this.login[name]);
    this.login = login;
    const seconds = asksAgainSeconds(login);
    if (isNew || wasAsked) {
      clearTimeout(this.timer);
      if (seconds !== null && this.isFollowed) {
        this.timer = setTimeout(() => this.ask(), seconds * 1000);
      }
    }
    this.show();
    if (!this.isFollowed) return;
    if ((isNew && OPENS_PANEL.includes(login.state)) || hasNews) this.page.bar.openPanel("login");
  }

  /** Ask no more: the session is over, or is about to be. */
  pause() {
    clearTimeout(this.timer);
    this.question.abort();
    this.question = new AbortController();
  }

  resume() {
    this.become(this.login, true);
  }

  end() {
    this.isOver = true;
    this.pause();
    this.show();
  }

  show() {
    this.panel.show(this.login, this.isKnown && this.isFollowed);
  }
}
