"""The requests and answers of OpenAI's API, as far as a diffusion model can keep to it.

A setting that the API knows and the sampler does not is accepted at the value that changes nothing, and
otherwise refused: an answer never ignores what was asked for.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from d1ray.config.sampling import DecodingName

T = TypeVar("T")
LARGEST = 2**63 - 1


def _encodable(text: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("half of a surrogate pair is no character")
    return text


def _neutral(*allowed: Any) -> AfterValidator:
    """Refuses every value but those, and None."""

    def check(value: T) -> T:
        if value is not None and value not in allowed:
            neutral = f", or at {allowed[0]!r}" if allowed else ""
            raise ValueError(f"is not supported by this server; leave it out{neutral}")
        return value

    return AfterValidator(check)


Text = Annotated[str, AfterValidator(_encodable)]
TokenId = Annotated[int, Field(ge=0, le=LARGEST)]


class Request(BaseModel):
    """Unknown keys, wrong types and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class DiffusionOptions(Request):
    """How this request is denoised, where the server's defaults are not wanted; d1ray's extension."""

    steps: int | None = Field(None, ge=1, le=LARGEST, description="denoising steps of the whole completion")
    block_length: int | None = Field(None, ge=1, le=LARGEST, description="tokens of a block")
    decoding: DecodingName | None = Field(None, description="which positions a step commits")
    schedule: Literal["uniform", "time"] | None = None
    threshold: float | None = Field(None, ge=0, le=1)
    factor: float | None = Field(None, ge=0, le=1e6)
    entropy_bound: float | None = Field(None, ge=0, le=1e6)
    position_temperature: float | None = Field(None, ge=0, le=1e3)
    temperature: float | None = Field(None, ge=0, le=10, description="goes before the request's own")
    cache: Literal["none", "prefix", "dual"] | None = Field(None, description="none is exact")
    events: bool | None = Field(None, description="with stream: an event at every denoising step")


class StreamOptions(Request):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Sampled(Request):
    """What both kinds of requests share."""

    model: Text
    max_tokens: int | None = Field(None, ge=1, le=LARGEST)
    temperature: float | None = Field(None, ge=0, le=2)
    n: int | None = Field(None, ge=1, le=LARGEST)
    seed: int | None = Field(None, ge=-LARGEST, le=LARGEST)
    stop: Text | list[Text] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Text | None = Field(None, description="not used")
    top_p: Annotated[float | None, _neutral(1)] = None
    frequency_penalty: Annotated[float | None, _neutral(0)] = None
    presence_penalty: Annotated[float | None, _neutral(0)] = None
    logit_bias: Annotated[dict[str, Any] | None, _neutral({})] = None
    diffusion: DiffusionOptions | None = None


class CompletionRequest(Sampled):
    """`POST /v1/completions`."""

    prompt: Text | list[Text] | list[TokenId] | list[list[TokenId]]
    best_of: Annotated[int | None, _neutral(1)] = None
    echo: Annotated[bool | None, _neutral(False)] = None
    logprobs: Annotated[int | None, _neutral()] = Field(None, description="not supported")
    suffix: Annotated[str | None, _neutral("")] = None


class TextPart(Request):
    type: Literal["text"]
    text: Text


class Message(Request):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: Text | None = Field(None, description="not used")

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)


class ResponseFormat(Request):
    type: Annotated[str, _neutral("text")]


class ChatRequest(Sampled):
    """`POST /v1/chat/completions`. A last message of the assistant is continued, not answered."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=LARGEST)
    logprobs: Annotated[bool | None, _neutral(False)] = None
    top_logprobs: Annotated[int | None, _neutral(0)] = None
    response_format: ResponseFormat | None = None
    metadata: dict[str, str] | None = Field(None, description="not used")
    store: Annotated[bool | None, _neutral(False)] = None


FinishReason = Literal["stop", "length"]


class Usage(BaseModel):
    """``forwards`` and ``seconds`` are d1ray's: passes of all choices, and how long the slowest took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    forwards: int
    seconds: float


class Origin(BaseModel):
    """What repeats the answer, bit for bit: the same request with this seed, to these weights."""

    version: str
    seed: int


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: None = None
    finish_reason: FinishReason | None


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: None = None
    finish_reason: FinishReason | None


class CompletionAnswer(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage
    d1ray: Origin


class ChatAnswer(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    d1ray: Origin


class Serving(BaseModel):
    """What the page and scripts want to know of the server."""

    defaults: dict[str, Any]
    limits: dict[str, Any]
    version: str


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "d1ray"
    d1ray: Serving


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]
    d1ray: Serving


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    error: ErrorDetail


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    version: str
