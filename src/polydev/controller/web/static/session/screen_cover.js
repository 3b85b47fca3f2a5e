// The cover that is shown in place of the screen while there is none.

import { sentence } from "../requests_and_notices.js";

const element = (id) => document.getElementById(id);
const WAITS = ["loading", "coming", "connecting"];
const LINKS = { home: "/", signin: "/login" };

export class Cover {
  /** `actions` has the functions of the buttons, by the names of views' actions. */
  constructor(t, actions) {
    this.t = t;
    this.actions = actions;
    this.shown = "";
  }

  show(view) {
    element("cover").hidden = view.kind === "screen";
    element("cover").dataset.kind = view.kind;
    set(element("cover-title"), this.words(view.title));
    set(element("cover-text"), this.words(view.text));
    set(element("cover-detail"), this.words(view.detail));
    this.showProgress(view);
    const names = view.actions.join(" ");
    if (names !== this.shown) {
      this.shown = names;
      element("cover-actions").replaceChildren(...view.actions.map((name) => this.button(name)));
    }
  }

  words(told) {
    if (!told) return "";
    return told.said !== undefined ? sentence(told.said) : this.t(...told);
  }

  showProgress({ kind, share }) {
    const progress = element("cover-progress");
    progress.hidden = !WAITS.includes(kind);
    if (typeof share === "number") progress.value = share;
    else progress.removeAttribute("value");
  }

  button(name) {
    const words = this.t(`actions.${name}`);
    if (name in LINKS) {
      const link = document.createElement("a");
      link.href = name === "signin" ? `/login?next=${encodeURIComponent(location.pathname)}` : LINKS[name];
      link.setAttribute("role", "button");
      link.className = "secondary";
      link.textContent = words;
      return link;
    }
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = words;
    button.addEventListener("click", this.actions[name]);
    return button;
  }
}

function set(element, words) {
  element.hidden = words === "";
  if (element.textContent !== words) element.textContent = words;
}
