"""Two hundred constraints that mean harm: each compiles or is refused within a second."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from mmserve.grammar.spec import Choice, Constraint, Grammar, JsonSchema, Regex, StructuralTag, Tag, Words, XmlSchema

Make = Callable[[], Constraint]


def hostile() -> Iterator[tuple[str, Make]]:
    """(name, what makes the constraint); making one may raise ``InvalidConstraint`` too."""
    yield from _regexes()
    yield from _schemas()
    yield from _grammars()
    yield from _others()


def _regexes() -> Iterator[tuple[str, Make]]:
    patterns = {
        "nested stars": "(((((a*)*)*)*)*)*b",
        "nested plus": "((a+)+)+$",
        "classic": "^(([a-z])+.)+[A-Z]([a-z])+$",
        "alternation": "(a|aa)+$",
        "overlap": "(.*a){20}",
        "overlap 2": "(.*a.*b.*c){30}",
        "dot star chain": ".*" * 500,
        "email": r"^([\w.]+)*@([\w.]+)*\.([\w.]+)*$",
        "unicode": r"[\w\s]{1000}\W{1000}",
        "unicode 2": r"(\w|\d|\s){5000}",
        "negated": r"[^\w]{3000}[^\s]{3000}",
        "dot": ".{50000}",
        "empty loop": "(|a|){1000}",
        "lookahead": "(?=a)b",
        "backreference": r"(a)\1",
        "atomic": "(?>a+)b",
        "caseless": "(?i)" + "[^a-z]" * 300,
        "caseless range": "(?i)[一-龥]{20}",
    }
    for name, pattern in patterns.items():
        yield f"regex {name}", lambda p=pattern: Regex(p)  # type: ignore[misc]
    for n in (10, 100, 1000, 10_000, 100_000):
        yield f"regex optional {n}", lambda n=n: Regex("a?" * n + "a" * n)  # type: ignore[misc]
        yield f"regex groups {n}", lambda n=n: Regex("(" * n + "a" + ")" * n)  # type: ignore[misc]
        yield f"regex words {n}", lambda n=n: Regex("|".join(f"w{i}" for i in range(n)))  # type: ignore[misc]
        yield f"regex counted {n}", lambda n=n: Regex(f"(a{{{n}}}){{{n}}}")  # type: ignore[misc]
        yield f"regex late {n}", lambda n=n: Regex(f"(a|b)*a(a|b){{{n}}}")  # type: ignore[misc]
        yield f"regex late dot {n}", lambda n=n: Regex(f".*a.{{{n}}}b")  # type: ignore[misc]
        yield f"regex choices of {n}", lambda n=n: Regex("(a|b|ab)" * n)  # type: ignore[misc]
        yield f"regex ranges {n}", lambda n=n: Regex(f"[a-z]{{0,{n}}}[a-y]{{0,{n}}}")  # type: ignore[misc]
    yield "regex 10 MB", lambda: Regex("a" * 10_000_000)
    yield "regex 1 MB of sets", lambda: Regex("[ab]" * 250_000)


def _schemas() -> Iterator[tuple[str, Make]]:
    for n in (30, 120, 1000, 20_000):
        for keyword in ("items", "not", "additionalProperties"):
            yield f"schema {keyword} {n}", lambda n=n, k=keyword: JsonSchema(_nested(f'{{"{k}":', "{}", "}", n))  # type: ignore[misc]
        for keyword in ("allOf", "anyOf", "oneOf"):
            yield f"schema {keyword} {n}", lambda n=n, k=keyword: JsonSchema(_nested(f'{{"{k}":[', "{}", "]}", n))  # type: ignore[misc]
        yield f"schema chain {n}", lambda n=n: JsonSchema.of(_chain(n))  # type: ignore[misc]
        yield f"schema properties {n}", lambda n=n: JsonSchema.of({"properties": {f"p{i}": {} for i in range(n)}})  # type: ignore[misc]
        yield f"schema required {n}", lambda n=n: JsonSchema.of({"required": [f"p{i}" for i in range(n)]})  # type: ignore[misc]
        yield f"schema enum {n}", lambda n=n: JsonSchema.of({"enum": [f"value {i}" for i in range(n)]})  # type: ignore[misc]
        yield f"schema constants {n}", lambda n=n: JsonSchema.of({"anyOf": [{"const": f"v{i}"} for i in range(n)]})  # type: ignore[misc]
        yield f"schema patterns {n}", lambda n=n: JsonSchema.of(_patterns(n))  # type: ignore[misc]
        yield f"schema pattern names {n}", lambda n=n: JsonSchema.of(_names(n))  # type: ignore[misc]
        yield f"schema product {n}", lambda n=n: JsonSchema.of(_product(n))  # type: ignore[misc]
        yield f"schema minItems {n}", lambda n=n: JsonSchema.of({"type": "array", "minItems": n, "maxItems": 2 * n})  # type: ignore[misc]
    schemas: dict[str, Any] = {
        "self": {"$ref": "#"},
        "loop": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        "endless": {"properties": {"a": {"$ref": "#"}}, "required": ["a"], "type": "object"},
        "siblings": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]},
        "external": {"$ref": "http://127.0.0.1:9/schema.json"},
        "file": {"$ref": "file:///etc/passwd"},
        "many items": {"type": "array", "minItems": 10**12},
        "long text": {"type": "string", "minLength": 10**7},
        "huge text": {"type": "string", "minLength": 10**15},
        "large numbers": {"type": "integer", "minimum": 10**400},
        "fine steps": {"type": "number", "multipleOf": 1e-300},
        "prime steps": {"type": "integer", "multipleOf": 999_983},
        "coprime": {"allOf": [{"multipleOf": p} for p in (7, 11, 13, 17, 19, 23)], "type": "integer"},
        "named references": {f"d{i}": {"$id": f"s{i}", "$ref": f"s{i + 1}"} for i in range(2000)},
        "slow pattern": {"type": "string", "pattern": "(.*a){50}", "maxLength": 10_000},
        "pattern and format": {"type": "string", "format": "email", "pattern": r"^\w+([.-]?\w+)*@\w+$", "minLength": 6},
        "broken": {"type": "strin", "properties": [], "minLength": "x"},
        "x-guidance": {"x-guidance": {"item_separator": "(a|a)*"}, "type": "array"},
    }
    for name, schema in schemas.items():
        yield f"schema {name}", lambda s=schema: JsonSchema.of(s)  # type: ignore[misc]
    yield "schema 10 MB", lambda: JsonSchema('{"description":"' + "x" * 10_000_000 + '"}')
    yield "schema 1 MB of enum", lambda: JsonSchema.of({"enum": [f"{i:07}" for i in range(95_000)]})
    yield "schema 1 MB of numbers", lambda: JsonSchema.of({"enum": list(range(140_000))})
    yield "schema of opening braces", lambda: JsonSchema('{"a":' * 200_000)
    yield "schema of opening brackets", lambda: JsonSchema("[" * 1_000_000)
    yield "schema surrogates", lambda: JsonSchema('{"const":"\\ud800"}')


def _nested(before: str, middle: str, behind: str, n: int) -> str:
    return before * n + middle + behind * n


def _chain(n: int) -> dict[str, Any]:
    links = {f"a{i}": {"properties": {"x": {"$ref": f"#/$defs/a{i + 1}"}}} for i in range(n)}
    return {"$ref": "#/$defs/a0", "$defs": {**links, f"a{n}": {}}}


def _patterns(n: int) -> dict[str, Any]:
    return {"type": "string", "allOf": [{"pattern": f"[^a-z]w{i}[^a-z]"} for i in range(n)]}


def _names(n: int) -> dict[str, Any]:
    return {"type": "object", "patternProperties": {f"^k{i}x": {} for i in range(n)}, "additionalProperties": False}


def _product(n: int) -> dict[str, Any]:
    options = [{"properties": {f"a{i}": {"const": i}}} for i in range(min(n, 40))]
    return {"allOf": [{"anyOf": options} for _ in range(min(n, 10))]}


def _grammars() -> Iterator[tuple[str, Make]]:
    for n in (10, 30, 300, 3000, 30_000):
        texts = {
            "parentheses": "start: " + "(" * n + '"a"' + ")" * n,
            "rules in a row": "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(n)) + f'r{n}: "a"',
            "deep rules in a row": "start: r0\n"
            + "".join(f"r{i}: {'(' * 20}r{i + 1}{')' * 20}\n" for i in range(n))
            + f'r{n}: "a"',
            "doubling rules": "start: a0\n" + "".join(f"a{i}: a{i + 1} a{i + 1}\n" for i in range(n)) + f'a{n}: "x"',
            "repetition": f'start: (("a"|"b"){{{n}}}){{{n}}}',
            "negations": "start: A\nA: " + "~" * n + "/a/",
            "intersections": "start: A\nA: " + " & ".join(f"/(.*[^a]w{i})?.*/" for i in range(n)),
            "ebnf parentheses": "root ::= " + "(" * n + '"a"' + ")" * n,
            "ebnf rules in a row": "root ::= r0\n"
            + "".join(f"r{i} ::= r{i + 1}\n" for i in range(n))
            + f'r{n} ::= "a"',
            "ebnf repetition": f'root ::= "a"{{{n}}}' + f"{{{n}}}" * 5,
            "nested json": "start: %json " + '{"items":' * n + "{}" + "}" * n,
        }
        for name, text in texts.items():
            yield f"grammar {name} {n}", lambda text=text: Grammar(text)  # type: ignore[misc]
    texts = {
        "left recursion": 'start: start start | "a" | ""',
        "nothing": "start: start",
        "hidden recursion": 'start: a\na: b a | "x"\nb: ""',
        "doubling terminals": "start: AA\n"
        + "".join(f"{'A' * i}: {'A' * (i + 1)} {'A' * (i + 1)}\n" for i in range(2, 30))
        + f'{"A" * 30}: "x"',
        "special token": "start: <|im_end|>",
        "special range": "start: <[0-500]>",
        "json form": '{"grammars":[{"lark_grammar":"start: <|im_end|>"}]}',
        "other grammar": "start: @other",
        "bytes": '%llguidance {"allow_invalid_utf8": true}\nstart: /(?-u:.)/',
        "empty": "start: ",
        "binary": "start: \x00\x01\x02",
        "quotes": 'start: "' * 1000,
        "slashes": "start: /" * 1000,
    }
    for name, text in texts.items():
        yield f"grammar {name}", lambda text=text: Grammar(text)  # type: ignore[misc]
    yield "grammar 10 MB", lambda: Grammar('start: "' + "a" * 10_000_000 + '"')
    yield "grammar 1 MB literal", lambda: Grammar('start: "' + "ab" * 500_000 + '"')
    yield "ebnf 1 MB", lambda: Grammar('root ::= "a"\n' * 70_000)


def _others() -> Iterator[tuple[str, Make]]:
    yield "choices 10 000", lambda: Choice(tuple(f"choice number {i}" for i in range(10_000)))
    yield "choices prefixes", lambda: Choice(tuple("a" * i for i in range(1, 1400)))
    yield "choice 1 MB", lambda: Choice(("ab" * 500_000,))
    yield "words 64", lambda: Words(must_include=tuple(f"w{i}" for i in range(64)))
    yield "words 32", lambda: Words(must_include=tuple(f"word{i}" for i in range(32)), max_words=1000)
    yield "words of 200", lambda: Words(must_include=tuple(f"{chr(97 + i) * 200}" for i in range(20)))
    yield "words forbidden", lambda: Words(must_not_include=tuple(f"{chr(97 + i % 26)}{i} x" * 30 for i in range(64)))
    yield "words both", lambda: Words(tuple(f"w{i}" for i in range(32)), tuple(f"bad{i}" for i in range(64)))
    yield "xml deep", lambda: XmlSchema.of(_deep_xml(500))
    yield "xml wide", lambda: XmlSchema.of({"element": "a", "children": [{"element": f"b{i}"} for i in range(5000)]})
    yield "xml counts", lambda: XmlSchema.of(_counted_xml(20))
    yield "xml long", lambda: XmlSchema.of({"element": "a", "text": {"pattern": "(.*a){40}"}})
    for n in (100, 1000):
        yield f"tags {n}", lambda n=n: _tags(n)  # type: ignore[misc]
    yield "tags of patterns", lambda: StructuralTag((Tag("<a", Regex("(.*a){30}"), "b"),), ("<",))


def _deep_xml(n: int) -> dict[str, Any]:
    found: dict[str, Any] = {"element": "a"}
    for _ in range(n):
        found = {"element": "a", "children": [found]}
    return found


def _counted_xml(n: int) -> dict[str, Any]:
    found: dict[str, Any] = {"element": "a"}
    for _ in range(n):
        found = {"element": "a", "children": [{**found, "min": 10_000, "max": 10_000}]}
    return found


def _tags(n: int) -> StructuralTag:
    schema = JsonSchema(json.dumps({"type": "object", "properties": {"x": {"type": "integer"}}}))
    return StructuralTag(tuple(Tag(f"<t{i}>", schema, f"</t{i}>") for i in range(n)), ("<t",))
