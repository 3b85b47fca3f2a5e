import assert from "node:assert/strict";
import { test } from "node:test";

import { plain } from "../../../src/polydev/controller/web/static/console_lines.js";

const SHOWN = [
  ["plain text stays", "[    0.000000] Linux version 6.1.0", "[    0.000000] Linux version 6.1.0"],
  ["colours go", "[\x1b[0;1;32m  OK  \x1b[0m] Reached", "[  OK  ] Reached"],
  ["cursor moves and clearing go", "\x1b[2J\x1b[H\x1b[?25lhere", "here"],
  ["a window's title goes, whatever ends it", "\x1b]0;a\x07b\x1b]2;c\x1b\\d", "bd"],
  ["one that does not end takes the line's rest", "a\x1b]0;title", "a"],
  ["strings of a terminal go", "\x1bPdevice\x1b\\x\x1b_application\x1b\\y", "xy"],
  ["short escapes go", "\x1bc\x1b(Bx\x1b7", "x"],
  ["a lonely escape goes", "x\x1b", "x"],
  ["what is written over shows its last", "10 %\r20 %\r30 %", "30 %"],
  ["the carriage return of a line's end is none", "done\r", "done"],
  ["other control characters go", "a\x00\x07\x08\x7f\x9bb", "ab"],
  ["tabs stay", "a\tb", "a\tb"],
  ["what turns the direction of text goes", "user\u202etxt.exe\u2069", "usertxt.exe"],
  ["markup is text", "<script>1</script>", "<script>1</script>"],
];

for (const [what, line, shown] of SHOWN) {
  test(what, () => assert.equal(plain(line), shown));
}

test("a line has an end", () => assert.equal(plain("x".repeat(9999)).length, 2000));
