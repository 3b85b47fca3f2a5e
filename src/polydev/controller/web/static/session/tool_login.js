// The login of the session's tool, beside its screen.

import { Problem } from "../app.js";
import { NONE, afterAnswer, afterSession, asksAgainSeconds } from "./login.js";
import { isComing } from "./progress.js";

const element = (id) => document.getElementById(id);

export class ToolLogin {
  /** `tools` is what people call the tool of each provider. */
  constructor(page, t, tools) {
    this.page = page;
    this.t = t;
    this.tools = tools;
    this.login = NONE;
    this.timer = null;
    this.isOver = false;
    this.question = new AbortController();
    this.isKnown = false;
    element("login-start-button").addEventListener("click", () => this.start());
  }

  sessionChanged({ status }) {
    this.isKnown = !isComing({ status });
    this.become(afterSession(this.login, status));
  }

  /** The first question starts the tool; one that failed is started again by another method. */
  async start() {
    const method = this.login.state === "failed" ? "POST" : "GET";
    this.become({ state: "starting", words: "" });
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

  become(login, wasAsked = false) {
    const isNew = login.state !== this.login.state;
    this.login = login;
    const seconds = asksAgainSeconds(login);
    if (isNew || wasAsked) {
      clearTimeout(this.timer);
      if (seconds !== null && !this.isOver && !this.page.viewOnly) {
        this.timer = setTimeout(() => this.ask(), seconds * 1000);
      }
    }
    this.show();
    if (isNew && login.state === "failed") this.page.bar.openPanel("login");
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
    const { state, words } = this.login;
    const values = { tool: this.tools[this.page.session?.provider] ?? this.page.session?.provider ?? "" };
    const button = element("login-button");
    button.hidden = this.isOver || !this.isKnown || this.page.viewOnly;
    button.dataset.state = state;
    const label = this.t(`login.${state}.label`, values);
    button.title = label;
    button.querySelector("span").textContent = label;
    element("login-text").textContent = this.t(`login.${state}.text`, values);
    const problem = element("login-problem");
    problem.hidden = words === "";
    problem.textContent = words;
    const start = element("login-start-button");
    start.hidden = !["none", "failed"].includes(state);
    start.textContent = this.t(state === "failed" ? "login.again" : "login.start", values);
  }
}
