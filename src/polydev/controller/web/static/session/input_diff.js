// What to take back and what to type, from two states of an input. Pure.

/**
 * Return { deleted, typed } that make `now` of `before`: how many characters to take back at the
 * end, and which to type then. Keyboards of touch screens change words that were typed already.
 */
export function edits(before, now) {
  const was = [...before];
  const is = [...now];
  let same = 0;
  while (same < was.length && same < is.length && was[same] === is[same]) same += 1;
  return { deleted: was.length - same, typed: is.slice(same) };
}
