"""Answers each request with the primes below the number in its path."""

from componentize_py_types import Ok
from wit_world.exports import IncomingHandler as Handler
from wit_world.imports.types import Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam


def primes(limit: int) -> list[int]:
    found = []
    for number in range(2, min(limit, 10_000)):
        if all(number % prime for prime in found):
            found.append(number)
    return found


class IncomingHandler(Handler):
    def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
        limit = (request.path_with_query() or "/").strip("/")
        text = " ".join(map(str, primes(int(limit) if limit.isdigit() else 30)))
        response = OutgoingResponse(Fields.from_list([("content-type", b"text/plain")]))
        body = response.body()
        ResponseOutparam.set(response_out, Ok(response))
        stream = body.write()
        stream.blocking_write_and_flush(f"primes from Python: {text}\n".encode())
        stream.__exit__(None, None, None)
        OutgoingBody.finish(body, None)
