"""Full-text search in PostgreSQL, scored by BM25.

PostgreSQL's own ``ts_rank`` does not know how rare a word is; here it comes from the statistics that ANALYZE keeps, and
from counting for words that are not among them.

    score = sum over words of  log(1 + (N - n + 0.5) / (n + 0.5)) * f * 2.2 / (f + 1.2 * (0.25 + 0.75 * l / typical l))

N chunks, n of them with the word, f times in this chunk of l different words. (Robertson and Zaragoza, The
Probabilistic Relevance Framework, 2009, with k1 = 1.2 and b = 0.75; l counts different words, as the index does.)

Only chunks with one of the rarest words are scored at first. What the others could bring is bounded by their
logarithms, so more are scored only when such a chunk could still be among the best; the result is that of scoring all.
The one exception are words in more than a twentieth of many chunks: they count, but bring in no chunk that has no other
word of the query, and when there are no others, only chunks that have all of them.

This module knows nothing about connections, documents or vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gritkit.rag.store import words_of

_MANY = 5000  # chunks; with fewer, every one that has a word is scored
_COMMON = 0.05
_FIRST = 3  # times as many chunks as are wanted are scored at first
_MOST_WORDS = 64  # the rarest of a long query

_COUNT = """
SELECT word, (SELECT count(*) FROM {table} WHERE words @@ quoted::tsquery)
FROM unnest(%s::text[], %s::text[]) w(word, quoted)
"""
_FREQUENCIES = """
SELECT word, frequency FROM pg_stats, unnest(most_common_elems::text::text[], most_common_elem_freqs) w(word, frequency)
WHERE schemaname = %s AND tablename = %s AND attname = 'words' AND word = ANY(%s)
"""
_SCORED = """
WITH wanted AS (SELECT * FROM unnest(%s::text[], %s::float8[]) w(lexeme, weight)),
typical AS (SELECT greatest(avg(length(words)), 1) AS length FROM (SELECT words FROM {table} LIMIT 500) few),
scored AS (
    SELECT document, number, (
        SELECT sum(weight * 2.2 * f / (f + 1.2 * (0.25 + 0.75 * length(one.words) / typical.length)))
        FROM unnest(one.words) u JOIN wanted USING (lexeme), LATERAL (SELECT cardinality(u.positions) AS f) g
    ) AS score
    FROM {table} one, typical WHERE one.words @@ %s::tsquery AND one.tags @> %s
    ORDER BY score DESC, document, number LIMIT %s)
SELECT {columns}, scored.score FROM scored JOIN {table} c USING (document, number)
"""


def matching(
    run: Any, place: Sequence[str], columns: str, text: str, top_k: int, tags: list[str]
) -> list[tuple[Any, ...]]:
    """Rows of ``columns`` and a score, unordered. ``run`` executes queries; ``place``: the table's schema and name."""
    lexemes = run("SELECT tsvector_to_array(to_tsvector('simple', %s))", (words_of(text),)).fetchone()[0]
    if not lexemes:
        return []
    total, counts = _counts(run, place, lexemes)
    rarest = sorted((count, lexeme) for lexeme, count in counts.items() if count)[:_MOST_WORDS]
    if not rarest:
        return []
    weights = {lexeme: math.log(1 + max(0.0, total - count + 0.5) / (count + 0.5)) for count, lexeme in rarest}
    pulling = [lexeme for count, lexeme in rarest if total < _MANY or count <= _COMMON * total]
    common = " & ".join(map(_quoted, weights))
    sql = _SCORED.replace("{columns}", columns)
    scored = (list(weights), list(weights.values()))
    if not pulling:
        return list(run(sql, (*scored, common, tags, top_k)).fetchall())
    taken = 0
    while True:
        wanted = max(_FIRST * top_k, 4 * sum(counts[lexeme] for lexeme in pulling[:taken]))
        taken += 1
        while taken < len(pulling) and sum(counts[lexeme] for lexeme in pulling[:taken]) < wanted:
            taken += 1
        query = " | ".join(map(_quoted, pulling[:taken]))
        found = list(run(sql, (*scored, query, tags, top_k)).fetchall())
        unseen = 2.2 * sum(weights[lexeme] for lexeme in pulling[taken:])
        if taken == len(pulling) or (len(found) == top_k and min(row[-1] for row in found) >= unseen):
            return found


def _counts(run: Any, place: Sequence[str], lexemes: list[str]) -> tuple[float, dict[str, float]]:
    """How many chunks there are, and how many have each word."""
    total = float(
        run("SELECT reltuples FROM pg_class WHERE oid = to_regclass(%s)", (run.text("{table}"),)).fetchone()[0]
    )
    counts: dict[str, float] = {}
    if total < _MANY:  # or never analyzed
        total = float(run("SELECT count(*) FROM {table}").fetchone()[0])
    else:
        counts = {word: share * total for word, share in run(_FREQUENCIES, (*place, lexemes)).fetchall()}
    rest = [lexeme for lexeme in lexemes if lexeme not in counts]
    return total, counts | {word: float(n) for word, n in run(_COUNT, (rest, list(map(_quoted, rest)))).fetchall()}


def _quoted(lexeme: str) -> str:
    """A word of PostgreSQL's query syntax, whatever characters are in it."""
    return "'" + lexeme.replace("\\", "\\\\").replace("'", "''") + "'"
