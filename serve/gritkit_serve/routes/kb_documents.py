"""``/v1/kb/{name}/documents``: add, list and delete documents.

Documents come as JSON or as files. The report of what became of them is sent when all of it is on disk; with
?stream=true events tell before how far it has come.

This module knows nothing about threads, stores, or what is in a file.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from gritkit_serve.adding import Addition, Found, found_in
from gritkit_serve.errors import HttpError, ParameterError
from gritkit_serve.kb_answers import bases_of
from gritkit_serve.routes.kb import BaseName
from gritkit_serve.routes.replies import json_reply, streams_too
from gritkit_serve.routes.sse import DONE, Events, EventStream, event
from gritkit_serve.schemas.kb import (
    KB_ERRORS,
    MAX_ID_CHARS,
    AddReply,
    DeletedDocuments,
    DocumentIds,
    DocumentList,
    NewDocuments,
    Progress,
    StoredDocument,
)
from gritkit_serve.service import CallDep, Service, ServiceDep
from gritkit_serve.settings import Settings
from gritkit_serve.uploads import Upload

router = APIRouter(tags=["knowledge bases"], responses=KB_ERRORS)

MAX_PAGE = 1000
_FILE_FIELDS = ("files", "file")
_TEXT_FIELDS = ("jsonl_field",)

_FORM = {
    "type": "object",
    "properties": {
        "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
        "jsonl_field": {"type": "string", "description": "Of files of rows: the field that holds the text."},
    },
    "required": ["files"],
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/NewDocuments"}},
            "multipart/form-data": {"schema": _FORM},
        },
    }
}


@router.get("/v1/kb/{name}/documents")
async def list_documents(
    name: BaseName,
    service: ServiceDep,
    after: Annotated[str | None, Query(max_length=MAX_ID_CHARS, description="The last id of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
) -> DocumentList:
    """The documents of a knowledge base, a page at a time, by id."""
    found = await bases_of(service).read(name, lambda rag: rag.documents(limit + 1, after))
    data = [StoredDocument(id=one.id, metadata=one.metadata, chunks=one.chunks) for one in found[:limit]]
    return DocumentList(data=data, has_more=len(found) > limit)


@router.delete("/v1/kb/{name}/documents")
async def delete_documents(name: BaseName, body: DocumentIds, service: ServiceDep) -> DeletedDocuments:
    """Remove documents; unknown ids are passed over."""
    body.check(service.settings)
    with bases_of(service).writer(name) as writer:
        deleted = await writer.write(lambda rag: rag.delete(body.ids))
    service.metrics.kb_documents.labels("deleted").inc(deleted)
    return DeletedDocuments(deleted=deleted)


@router.post(
    "/v1/kb/{name}/documents", response_model=AddReply, responses=streams_too(AddReply, Progress), openapi_extra=_BODY
)
async def add_documents(
    name: BaseName,
    request: Request,
    service: ServiceDep,
    call: CallDep,
    stream: Annotated[bool, Query(description="Send how far it has come as server-sent events.")] = False,
) -> Response:
    """Add documents, replace those whose id is known, pass over those that did not change.

    JSON, or files as multipart/form-data: text, Markdown, HTML, PDF, DOCX, source code; JSON lines, CSV and TSV are a
    document for each row. A document that cannot be taken is named in the report, and the others are. With stream=true:
    the events ``progress``, ``report``, then ``[DONE]``.
    """
    with ExitStack() as held:
        writer = held.enter_context(bases_of(service).writer(name))  # first: only so many wait, each with its body
        addition = Addition(await _received(request, service), writer, service.metrics.count_added)
        if not stream:
            async with aclosing(addition.commits()) as commits:
                async for _ in commits:
                    pass
            return json_reply(addition.reply())
        held.pop_all()
    return EventStream(_events(addition), request_id=call.id, close=writer.close)


async def _events(addition: Addition) -> Events:
    async with aclosing(addition.commits()) as commits:
        async for progress in commits:
            yield event(progress.model_dump_json(), name="progress")
    yield event(addition.reply().model_dump_json(), name="report")
    yield DONE


async def _received(request: Request, service: Service) -> Found:
    """The documents of a body, JSON or files. Raises what says why there are none."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data":
        return await _files_of(request, service)
    body = await request.body()
    return await service.engine.call(lambda: _documents_of(body, service.settings))


def _documents_of(body: bytes, settings: Settings) -> Found:
    """Raises RequestValidationError as FastAPI does for bodies that it reads itself."""
    try:
        sent = json.loads(body)
    except ValueError:
        raise HttpError("the body is not valid JSON", status=400) from None
    try:
        parsed = NewDocuments.model_validate(sent)
    except ValidationError as error:
        findings = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
        raise RequestValidationError(findings, body=sent) from None
    parsed.check(settings)
    return found_in(parsed.documents)


async def _files_of(request: Request, service: Service) -> Found:
    with service.files.room():
        form = await _form_of(request, service.settings.max_documents)
        try:
            uploads, texts = [], {}
            for field, value in form.multi_items():
                if isinstance(value, UploadFile) and field in _FILE_FIELDS:
                    uploads.append(Upload(value.filename or "", value.file))
                elif isinstance(value, str) and field in _TEXT_FIELDS:
                    texts[field] = value
                else:
                    kind = "file" if isinstance(value, UploadFile) else "field"
                    raise ParameterError(f"unknown {kind} {field[:60]!r}: send files as 'files'", param="files")
            if not uploads:
                raise ParameterError("files is missing: send at least one", param="files")
            return await service.files.read(uploads, **texts)
        finally:
            await form.close()


class _Form(MultiPartParser):
    """Knows whether the end came: without it the last file would be left out in silence."""

    ended = False

    def on_end(self) -> None:
        self.ended = True


async def _form_of(request: Request, max_files: int) -> FormData:
    """Raises HttpError (400) for what is no whole form."""

    async def pieces() -> AsyncGenerator[bytes, None]:
        async for piece in request.stream():
            yield piece
        if not parser.ended:
            raise MultiPartException("it has no end")

    try:
        parser = _Form(request.headers, pieces(), max_files=max_files, max_fields=len(_TEXT_FIELDS))
        return await parser.parse()
    except MultiPartException as error:
        raise HttpError(f"the form cannot be read: {error.message}", status=400) from None
