import json
import pickle

import pytest

from s2d_serve import errors
from s2d_serve.api.errors import FAULTS, OUR_FAULT, fault_of, reply
from s2d_serve.api.jsontext import to_json


@pytest.mark.parametrize(
    ("error", "status", "error_type", "param", "code"),
    [
        (errors.bad_request("n: 9", "n"), 400, "invalid_request_error", "n", "invalid_value"),
        (errors.RequestError("bad"), 400, "invalid_request_error", None, "invalid_value"),
        (
            errors.AuthenticationError("no key"),
            401,
            "authentication_error",
            None,
            "invalid_api_key",
        ),
        (
            errors.UnknownModelError("no model x"),
            404,
            "invalid_request_error",
            "model",
            "model_not_found",
        ),
        (
            errors.PayloadTooLargeError("3 MB"),
            413,
            "invalid_request_error",
            None,
            "payload_too_large",
        ),
        (errors.OverloadedError("full"), 429, "rate_limit_error", None, "overloaded"),
        (errors.UnavailableError("down"), 503, "service_unavailable_error", None, "unavailable"),
        (errors.DeadlineError("late"), 503, "service_unavailable_error", None, "deadline"),
    ],
)
def test_each_error_has_its_status_and_shape(
    error: errors.S2DError, status: int, error_type: str, param: str | None, code: str
) -> None:
    answer = reply(error)
    assert answer.status == status
    assert json.loads(to_json(answer.body)) == {
        "error": {"message": str(error), "type": error_type, "param": param, "code": code}
    }
    assert reply(pickle.loads(pickle.dumps(error))) == answer  # as it comes from a replica


@pytest.mark.parametrize(
    ("error", "header"),
    [
        (errors.OverloadedError("full"), "Retry-After"),
        (errors.UnavailableError("down"), "Retry-After"),
        (errors.DeadlineError("late"), "Retry-After"),
        (errors.AuthenticationError("no key"), "WWW-Authenticate"),
    ],
)
def test_headers_tell_what_to_do(error: errors.S2DError, header: str) -> None:
    assert list(reply(error).headers) == [header]


def test_only_those_have_headers() -> None:
    assert not reply(errors.bad_request("bad")).headers
    assert not reply(ValueError("bad")).headers


@pytest.mark.parametrize(
    "error",
    [
        ValueError("secret"),
        KeyError("secret"),
        errors.S2DError("secret"),
        errors.WeightsError("secret: /home/somebody/model.gguf"),
        errors.ConfigError("secret"),
        errors.UnsupportedModelError("secret"),
    ],
)
def test_our_own_faults_tell_nothing(error: Exception) -> None:
    answer = reply(error)
    assert answer.status == 500
    assert "secret" not in str(answer)
    assert answer.body == {
        "error": {
            "message": "internal error; the server's log has it under this request id",
            "type": "server_error",
            "param": None,
            "code": "internal_error",
        }
    }


def test_every_error_of_the_package_is_decided_on() -> None:
    ours = {errors.ConfigError, errors.WeightsError, errors.UnsupportedModelError}
    assert set(FAULTS) | ours == set(errors.S2DError.__subclasses__())
    assert not set(FAULTS) & ours


def test_a_subclass_is_answered_as_its_base() -> None:
    class QuotaError(errors.OverloadedError):
        pass

    assert fault_of(QuotaError("x")) is FAULTS[errors.OverloadedError]
    assert fault_of(OSError("x")) is OUR_FAULT
