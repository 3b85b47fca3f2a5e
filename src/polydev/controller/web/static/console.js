// Follow a VM's serial console, and keep a limited number of lines.

import { problemOf, showProblem } from "./requests_and_notices.js";
import { MOST_CHARACTERS, plain } from "./console_lines.js";
import { pauseSeconds } from "./retry_pauses.js";

const MOST_LINES = 2000;
const TAIL = 200;
const REFUSALS = [401, 403, 404];

/**
 * Show a console in `element` until the VM ends. `tell` is called with the name of a text and its
 * values whenever the state changes. Output that arrives during a pause is shown after it.
 */
export function follow(path, element, tell) {
  const lines = [];
  let rest = "";
  let isPaused = false;
  let isDrawn = true;

  function take(part) {
    const found = (rest + part).split("\n");
    rest = found.pop().slice(-MOST_CHARACTERS);
    lines.push(...found.slice(-MOST_LINES).map(plain));
    lines.splice(0, lines.length - MOST_LINES);
    if (isDrawn) requestAnimationFrame(draw);
    isDrawn = false;
  }

  function draw() {
    isDrawn = true;
    if (isPaused) return;
    const isAtEnd = element.scrollTop + element.clientHeight >= element.scrollHeight - 30;
    element.textContent = [...lines, plain(rest)].join("\n");
    if (isAtEnd) element.scrollTop = element.scrollHeight;
  }

  async function read() {
    const answer = await fetch(`${path}?tail=${TAIL}&follow=true`, { credentials: "same-origin" });
    if (answer.status === 410) return "gone";
    if (!answer.ok) throw await problemOf(answer);
    lines.length = 0;
    rest = "";
    tell("following");
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) take(part.value);
    return "over";
  }

  async function goOn() {
    for (let tries = 0; ; tries += 1) {
      try {
        tell(await read());
        return;
      } catch (error) {
        if (REFUSALS.includes(error.status)) {
          showProblem(error);
          return;
        }
        const seconds = pauseSeconds(tries);
        tell("lost", { seconds });
        await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
      }
    }
  }

  goOn();
  return {
    toggle() {
      isPaused = !isPaused;
      if (!isPaused) draw();
      return isPaused;
    },
  };
}
