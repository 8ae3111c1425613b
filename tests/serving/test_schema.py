"""Requests made up from the served OpenAPI schema, right and wrong ones, never get a 5xx."""

import warnings

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from d1ray.serving.config import ServeConfig
from d1ray.serving.local import local_app

EXAMPLES = 40  # of each operation, right and wrong


@pytest.fixture(scope="module")
def schema(text_folder, listening):
    config = ServeConfig(model=text_folder, limits={"max_tokens": 32, "choices": 4, "prompt_tokens": 64})
    with listening(local_app(config)) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


OPERATIONS = {
    "POST /v1/completions",
    "POST /v1/chat/completions",
    "GET /v1/models",
    "GET /v1/models/{model}",
    "GET /health",
    "GET /metrics",
}


RIGHT, WRONG = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
CASES = [(label, RIGHT) for label in sorted(OPERATIONS)]
CASES += [(label, WRONG) for label, _ in CASES if "completions" in label]  # about others nothing can be wrong


@pytest.mark.parametrize(("label", "mode"), CASES, ids=lambda part: str(getattr(part, "value", part)))
def test_no_request_makes_the_server_fail(schema, label, mode):
    operations = {result.ok().label: result.ok() for result in schema.get_all_operations()}
    assert set(operations) == OPERATIONS
    statuses = []

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operations[label].as_strategy(generation_mode=mode))
    def check(case):
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "tiny"  # or most requests would end at the first check
        answer = case.call(timeout=30)
        case.validate_response(answer, checks=[not_a_server_error])
        statuses.append(answer.status_code)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check()
    assert statuses and max(statuses) < 500
    if "completions" in label:
        assert (200 if mode is RIGHT else 400) in statuses
