// Problems to begin with, worded as d1ray's tasks word them: a model trained on a task knows its wording.

const PUZZLE = "1000020041200341";
const ROOMY = 256; // tokens of context that the wordings fit into

const INSTRUCTION = "Think step by step between <reasoning> and </reasoning>. Then give the answer, a number, as \\boxed{} between\n<answer> and </answer>.";

const EXAMPLES = [
  {
    name: "Sudoku 4×4",
    problem:
      "Here is a 4x4 Sudoku, written row by row as 16 digits; 0 is an empty cell:\n" +
      `${PUZZLE}\n` +
      "Complete it: each row, each column and each 2x2 box must hold 1, 2, 3 and 4. Keep the given digits.\n" +
      "Write <reasoning>your steps</reasoning> and then <answer>the 16 digits of the completed grid</answer>.",
  },
  {
    name: "Countdown",
    problem:
      "Numbers: 19, 36, 7. Target: 48.\n" +
      "Find an arithmetic expression that equals the target and uses every number exactly once.\n" +
      "Allowed are + - * / and parentheses.\n" +
      "Write <reasoning>your steps</reasoning> and then <answer>the expression</answer>.",
  },
  {
    name: "Word problem",
    problem:
      "A bakery sells boxes of 6 buns for $9 and single buns for $2. Mia needs 20 buns for a party and wants to pay as little as possible. How many dollars does she pay?\n\n" +
      INSTRUCTION,
  },
];

/* Of the tiny models' context nothing but the puzzle is left: so `sudoku-tiny` learns it. */
export function examplesFor(model) {
  return (model?.limits.context ?? Infinity) < ROOMY ? [{ name: "Sudoku 4×4", problem: PUZZLE }] : EXAMPLES;
}
