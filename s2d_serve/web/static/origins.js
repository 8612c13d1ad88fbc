// Where each token came from. Colours are Okabe and Ito's; every origin has a letter and an
// underline of its own as well.

const LOOKUP_EXIT = 0;

export const LOOKUP = { name: "suffix lookup", letter: "L", style: "lookup" };
export const BONUS = { name: "bonus", letter: "+", style: "bonus" };
export const CORRECTION = { name: "correction", letter: "×", style: "correction" };
export const ALONE = { name: "target alone", letter: "·", style: "alone" };

const MEANINGS = {
  lookup: "proposed because the text went this way before; the target agreed",
  bonus: "the target's own token after a proposal that was right to its end",
  correction: "the target's own token where the draft was wrong",
  alone: "the target's own token in a round without a proposal",
};

/** The origin of a token that the draft proposed, by the exit layer that emitted it. */
export function draftOrigin(exit, exitLayers) {
  if (exit === LOOKUP_EXIT) return LOOKUP;
  const place = exitLayers.indexOf(exit) + 1 || exitLayers.length + 1;
  return { name: `exit ${exit}`, letter: String(place), style: `exit-${Math.min(place, 4)}` };
}

/** The origin of each token that a round committed. */
export function committedOrigins(round, exitLayers) {
  return round.committed.map((_, i) => {
    if (i < round.num_accepted) return draftOrigin(round.draft[i].exit, exitLayers);
    if (!round.draft.length) return ALONE;
    return round.num_accepted === round.draft.length ? BONUS : CORRECTION;
  });
}

/** All origins that answers of a target can have, for a legend. */
export function allOrigins(exitLayers) {
  const exits = exitLayers.map((exit) => draftOrigin(exit, exitLayers));
  return [...exits, LOOKUP, BONUS, CORRECTION, ALONE];
}

/** What an origin means, as half a sentence. */
export function meaning(origin) {
  return MEANINGS[origin.style] ?? `drafted by the draft's ${origin.name}; the target agreed`;
}
