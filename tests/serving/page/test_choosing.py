"""What a person chooses is what is asked for, and nothing impossible can be chosen."""

from collections.abc import Callable
from typing import Any

from d1ray.config.sampling import SamplerConfig
from d1ray.tasks.countdown import Countdown
from d1ray.tasks.gsm8k import GSM8K
from d1ray.tasks.sudoku import Sudoku, completions

FIXED, THRESHOLD = "low_confidence", "threshold"
Opened = Callable[..., Any]


def test_a_typed_problem_is_asked_as_a_chat_with_the_settings(
    opened: Opened, server: Any, script: Any
) -> None:
    page = opened()
    fixed, threshold = page.panes
    page.fill("#problem", "2 < 3?")
    page.fill("#seed", "11")
    fixed.setting("Steps").fill("4")
    threshold.setting("Least confidence").fill("0.75")
    threshold.setting("Temperature").fill("0")
    threshold.setting("Cache").select_option("prefix")
    page.click("#run")
    for decoding, pane in zip((FIXED, THRESHOLD), page.panes, strict=True):
        server.say(decoding, *script.SHORT)
        pane.is_in("done")
    bodies = {body["diffusion"]["decoding"]: body for _, body in server.asked}
    common = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "2 < 3?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 16,
        "seed": 11,
    }
    first = {"events": True, "block_length": 8, "decoding": FIXED, "cache": "none", "steps": 4}
    second = {"events": True, "block_length": 8, "decoding": THRESHOLD, "cache": "prefix", "threshold": 0.75}
    assert bodies[FIXED] == {**common, "temperature": 0.5, "diffusion": first}
    assert bodies[THRESHOLD] == {**common, "temperature": 0, "diffusion": second}
    assert all("Authorization" not in headers for headers, _ in server.asked)


def test_two_models_are_compared(opened: Opened, server: Any, script: Any) -> None:
    server.models = ["before", "after"]
    page = opened()
    for pane, model in zip(page.panes, server.models, strict=True):
        pane.setting("Model").select_option(model)
        pane.setting("Decoding").select_option(FIXED)
    server.say(FIXED, *script.SHORT, *script.SHORT)
    page.click("#run")
    for pane in page.panes:
        pane.is_in("done")
    assert sorted(body["model"] for _, body in server.asked) == ["after", "before"]
    names = page.locator("#comparison .key").all_inner_texts()
    assert names == ["Fixed schedule, 8 steps, before", "Fixed schedule, 8 steps, after"]


def test_every_choice_of_settings_is_one_that_the_sampler_takes(opened: Opened) -> None:
    chosen = opened().evaluate(
        """async () => {
          const { blockLengths, fittingSteps, lengths, requestBody, DECODINGS, defaultsOf } =
            await import("/page/settings.js");
          const bodies = [], usual = defaultsOf(undefined);
          for (const length of lengths({ defaults: { gen_length: 48, block_length: 12 }, limits: {} }))
            for (const block_length of blockLengths(length, 12))
              for (const asked of [1, length / 3, length, 5000])
                for (const decoding of Object.keys(DECODINGS)) {
                  const steps = fittingSteps(asked, length, block_length);
                  bodies.push(requestBody("", { ...usual, length, block_length, decoding, steps }, 0));
                }
          return [...new Set(bodies.map((body) => JSON.stringify(body)))].map((text) => JSON.parse(text));
        }"""
    )
    assert len(chosen) > 1000
    for body in chosen:
        diffusion = {name: value for name, value in body["diffusion"].items() if name != "events"}
        SamplerConfig(gen_length=body["max_tokens"], temperature=body["temperature"], **diffusion)


def test_what_is_chosen_stays_possible_when_the_length_changes(opened: Opened) -> None:
    page = opened(panes=1)
    pane = page.panes[0]
    assert page.locator("#length option").all_inner_texts() == ["16", "32"]  # within the server's limit
    page.select_option("#length", "32")
    pane.has_masks(32)
    assert pane.node.locator("h2").inner_text().startswith("Fixed schedule, 16 steps")
    pane.setting("Block").select_option("4")
    steps = pane.setting("Steps")
    assert [steps.get_attribute(name) for name in ("min", "max", "step")] == ["8", "32", "8"]


def test_the_examples_are_worded_as_the_tasks_word_them(opened: Opened) -> None:
    page = opened()
    worded = []
    for name in ("Sudoku 4×4", "Countdown", "Word problem"):
        page.get_by_role("button", name=name).click()
        worded.append(page.input_value("#problem"))
    puzzle, question = worded[0].split("\n")[1], worded[2].split("\n")[0]
    assert worded[0] == Sudoku().prompt(puzzle=puzzle) and len(completions(puzzle)) == 1
    assert worded[1] == Countdown().prompt(numbers="19, 36, 7", target="48", operations="+ - * /")
    assert worded[2] == GSM8K().prompt(question=question)


def test_a_model_with_little_context_is_given_what_fits(opened: Opened, server: Any) -> None:
    server.limits = {"max_tokens": 1024, "context": 64}
    page = opened()
    assert page.input_value("#problem") == "1000020041200341"
    assert page.locator("#length option").all_inner_texts() == ["16", "32"]


def test_a_key_is_asked_for_and_kept_in_the_tab_only(opened: Opened, server: Any, script: Any) -> None:
    server.key = "s3cret"
    page = opened()
    trouble, key = page.locator("#trouble"), page.locator("#key")
    page.expect(trouble).to_contain_text("The server wants an API key.")
    page.expect(key).to_be_focused()
    key.fill("wrong")
    page.keyboard.press("Enter")
    page.expect(trouble).to_contain_text("Incorrect API key")
    key.fill("schlüssel\N{SNOWMAN}")
    page.keyboard.press("Enter")
    page.expect(trouble).to_contain_text("A key holds nothing but ASCII")
    key.fill("s3cret")
    page.keyboard.press("Enter")
    page.expect(trouble).to_be_hidden()
    page.uncheck("#compare")
    server.say(FIXED, *script.SHORT)
    page.keyboard.press("Control+Enter")
    page.panes[0].is_in("done")
    assert server.asked[0][0]["Authorization"] == "Bearer s3cret"
    kept = page.evaluate("JSON.stringify(localStorage) + location.href + document.cookie")
    assert "s3cret" not in kept
    page.reload()
    page.expect(page.locator("#served")).to_contain_text("tiny")
    page.click("#key-button")
    page.click("#forget")
    assert page.evaluate("sessionStorage.length") == 0
