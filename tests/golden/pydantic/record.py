"""Records what FastAPI with pydantic v2 answers to a spread of bodies: cases.json beside this file.

    python3 -m venv /tmp/pydantic && /tmp/pydantic/bin/pip install fastapi==0.165.0 pydantic==2.14.3 httpx
    /tmp/pydantic/bin/python tests/golden/pydantic/record.py

The models are built from ../endpoints.json, so the recording knows nothing of kiln's own tables. It was made with
Python 3.11; the offsets of `json_invalid` are that version's.
"""

import json
import pathlib
import random
import warnings
from typing import Annotated, List, Literal, Optional

warnings.simplefilter("ignore")
from fastapi import FastAPI  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402
from pydantic import Field, create_model  # noqa: E402

HERE = pathlib.Path(__file__).parent
GOLDEN = json.loads((HERE.parent / "endpoints.json").read_text())
PREFIX = GOLDEN["$meta"]["family"] + "/"


def kind(schema, optional):
    t = schema["type"]
    if isinstance(t, list):
        t, optional = next(x for x in t if x != "null"), True
    bounds = {}
    if "enum" in schema:
        out = Literal[tuple(schema["enum"])]
    elif t == "array":
        out = List[kind(schema["items"], False)]
        if "minItems" in schema:
            bounds = {"min_length": schema["minItems"], "max_length": schema["maxItems"]}
    else:
        out = {"string": str, "boolean": bool, "integer": int, "number": float}[t]
        if "minimum" in schema:
            bounds = {"ge": schema["minimum"], "le": schema["maximum"]}
        if schema.get("x-mod", {}).get("remainder") == 0:
            bounds["multiple_of"] = schema["x-mod"]["divisor"]
    if bounds:
        out = Annotated[out, Field(**bounds)]
    return Optional[out] if optional else out  # null is "not given"


def model(endpoint):
    item = endpoint["validation_item"]
    required = item["required"]
    entry = create_model(
        item["title"],
        **{k: (kind(s, k not in required), ... if k in required else None) for k, s in item["properties"].items()},
    )
    fields = {}
    for name, schema in endpoint["input"]["properties"].items():
        needed = name in endpoint["input"]["required"]
        if name == "validation":
            fields[name] = (Optional[List[entry]], [])
        else:
            fields[name] = (kind(schema, not needed), ... if needed else schema["default"])
    return create_model("Input", **fields)


app = FastAPI()
for path, endpoint in GOLDEN["endpoints"].items():

    def route(m):
        def answer(body: m):
            return body.model_dump()

        return answer

    app.post("/" + path)(route(model(endpoint)))
client = TestClient(app, raise_server_exceptions=False)


def ask(path, raw):
    answer = client.post("/" + PREFIX + path, content=raw.encode(), headers={"content-type": "application/json"})
    return answer.status_code, answer.json() if answer.status_code in (200, 422) else None


URL = "https://example.com/data.zip"
BASE = {
    "outpaint": {"crop_top_left": [32, 32], "crop_bottom_right": [64, 64]},
}
ITEMS = {
    "t2v": {"prompt": "a"},
    "audio-inpaint": {"prompt": "a", "audio_url": URL, "time_ranges": [[0.5, 1]]},
    "av2av": {"prompt": "a", "reference_video_url": URL, "reference_audio_url": None},
    "interpolate": {"prompt": "a", "start_image_url": URL, "end_image_url": URL},
}
ANY = [None, True, False, [], {}, [1], {"a": 1}, 1.5, -1, "", "x", "é", "null", " "]
INTS = ["1000", " 1000 ", "1_000", "1__000", "_1", "+1000", "-5", "1000.0", "1000.", "1000.5", "1e3", "0001000",
        1000.0, 1000.5, 99, 100, 10000, 10001, 1e30, -1e300, "9" * 30, "\u0661\u0660", "1000\n", ".0",
        "1000.0_0", "--5", "+-5", "+ 5", "1 000", "0_1000", "1000_", "+0105", "-0", "1000.0.0", "\u00a0105", "１００",
        "1_000.00", "100_.0", "-_1", "+_100", "1000.00 ", "0x64", "1000L", "\t200", "1000\x00", 9007199254740993]
FLOATS = ["1e-4", " 0.001 ", "1_0e-5", "nan", "inf", "-inf", "Infinity", "+inf", "+nan", 0, 1, 2, 1e-7, "1E-3",
          ".001", "1.", "+0.5", "0x1p-3", "1e400", "-1e400", "1e-4_", "_1", "0_0.1", "1__0", "0_.5", "1e_5", "1e-400",
          "\u0660.\u0665", "0.5\n", "infinit", "1e", "e5", ".", "+.5", "- 1", "1,5", "1e5.0", "in f", "iNf", 10**18]
BOOLS = ["true", "True", "TRUE", " true", "t", "yes", "Y", "on", "OFF", "0", "1", "2", 0, 1, 2, 0.0, 1.0, 2.0, 1e300,
         -1, "no", "F", "tRuE", "oN", "yeah", "00", "1.0", 0.5, 10**18]
CHOICES = ["low", "LOW", "high ", "medium", "16:9", "1:1", 16, "9:16", "'low'"]
RANKS = [8, 16, 32, 64, 128, 32.0, 31, 33.5, "a", "0x20", 1e30]
TEXTS = ["\u0000", "\U0001f600", 7, "a" * 100]
LISTS = ["[]", [[]], [[1, 2]], [None], [1, 2, 3], ["1", 2.0], ["a", 1.5], ["a", 1.5, 2], [None, 1], [1.5], [True, 40],
         [[1], [2]], "12", {"0": 1, "1": 2}, [{}], [1e30, 33], ["9" * 30]]
ENTRIES = [[1], ["a"], [[]], [{}], [{"prompt": 1}], [{"prompt": "a"}, {"prompt": None}, 3], [{"prompt": ["a"]}]]
RANGES = [[[1, 2]], [[1]], [1], [[1, 2, 3]], [["0.5", "x"]], [["0", "2.5"]], "x", [[[], 1]], [None], [[None, 1]],
          [[0.5, "y", 2]], [{}], [[0, 1], [1]], {"0": [1, 2]}, [["a"]]]


def spread(schema):
    if schema.get("format") == "uri":  # which addresses are served is kiln's own affair
        return [value for value in ANY if not isinstance(value, str)] + [URL]
    t = schema["type"]
    t = t if isinstance(t, str) else next(x for x in t if x != "null")
    if "enum" in schema:
        return ANY + (RANKS if t == "integer" else CHOICES)
    return ANY + {"string": TEXTS, "boolean": BOOLS, "integer": INTS, "number": FLOATS, "array": LISTS + ENTRIES}[t]


# fields whose divisibility rule the recording cannot know: whole numbers are left to kiln's own tests
RULED = ("number_of_frames", "validation_number_of_frames", "conditioning_frames")


def cases():
    rng = random.Random(23)
    paths = ["t2v", "outpaint", "extend-suffix", "audio-inpaint", "interpolate", "v2v", "av2av", "audio-extend-prefix"]
    seen, times = set(), {}
    for path in paths:
        endpoint = GOLDEN["endpoints"][PREFIX + path]
        base = {"training_data_url": URL} | BASE.get(path, {})
        properties = endpoint["input"]["properties"]
        for name, schema in properties.items():
            if (name, json.dumps(schema)) in seen and name != "validation":
                continue
            seen.add((name, json.dumps(schema)))
            values = spread(schema)
            times[str(values)] = times.get(str(values), 0) + 1
            if times[str(values)] > 2:
                values = rng.sample(values, min(12, len(values)))
            for value in values:
                yield path, json.dumps(base | {name: value})
        item = ITEMS.get(path)
        if item:
            for name, schema in endpoint["validation_item"]["properties"].items():
                for value in RANGES if name == "time_ranges" else spread(schema):
                    yield path, json.dumps(base | {"validation": [item, item | {name: value}]})
                left = {k: v for k, v in item.items() if k != name}
                yield path, json.dumps(base | {"validation": [left]})
        names = list(properties)
        for _ in range(25):
            body = dict(base)
            for name in rng.sample(names, rng.randint(2, 8)):
                body[name] = rng.choice(spread(properties[name]))
            body.pop(rng.choice(names), None)
            if "include_middle_keyframe" in body:  # a rule across fields
                body.pop("validation", None)
            body["unknown"] = [1]
            yield path, json.dumps(body, ensure_ascii=rng.random() < 0.5)
    yield "t2v", json.dumps({"training_data_url": URL, "number_of_steps": "9" * 5000})
    whole = json.dumps({"training_data_url": URL, "a": [1, -2.5e3, {"b": None}], "c": "x\\u00e9\n"}, indent=1)
    bodies = ["", "null", "[]", "1", '"x"', "{", "{}", '{"a"', '{"a":', '{"a":1', '{"a":1,', '{"a":1,}', "[1,]", "{a:1}",
              '{"a":tru}', '{"a":"x', '{"a":"\x01"}', '{"a":"\\x"}', '{"a":"\\u12"}', "{} x", ' {"a":1 "b":2}', "nope",
              '\ufeff{}', '{"a":01}', '{"a":-}', '{"a":1.}', '{"é":é}', "  ", '{"a" 1}', "[1 2]", "{'a':1}",
              '{"a":"\\u12g4"}', "[", '{"a":[1,', '{"a":[1,2', '{"a":nul', '{"a":"\\', '{"a":"\\u1', '{"a":+1}', '{"a":.5}',
              "\x00", "[]]", "{}}", '{"a":1e}', '{"a":1e+}', '{"a":1.5.}', '[1,,2]', '{"a":{}', '{"a":[}', '[{]', ":", ",",
              '"\\', '"\t"', "-", "--1", "tru", "nulll", "[1]x", '{"a":1}}', '{"a":"b"c}', '{,}', '{"a":1,,}', "// c", "-0.",
              '{"a":1}\n\n{"b":2}', "[true,false,null,]", '{"a":tru', '[1,2', '{"\\u00e9"', '{"\\q":1}', "é", '["é" 1]']
    for body in bodies:
        yield "t2v", body
    for _ in range(250):
        chars = list(whole)
        for _ in range(rng.randint(1, 2)):
            at = rng.randrange(len(chars))
            match rng.randrange(3):
                case 0:
                    del chars[at:]
                case 1:
                    del chars[at]
                case _:
                    chars.insert(at, rng.choice('{}[]",:\\u0123eE+-. \ntfné\x02'))
            if not chars:
                break
        yield "t2v", "".join(chars)


rows, done = [], set()
for path, raw in cases():
    if (path, raw) in done:
        continue
    done.add((path, raw))
    body = None
    try:
        body = json.loads(raw)
    except ValueError:
        pass
    if isinstance(body, dict) and any(body.get(k) is not None and type(body[k]) in (int, float) for k in RULED):
        continue
    status, answer = ask(path, raw)
    if status == 422:
        rows.append({"path": path, "body": raw, "detail": answer["detail"]})
    elif status == 200 and isinstance(body, dict) and body["training_data_url"] == URL:
        low, high = answer.get("crop_top_left"), answer.get("crop_bottom_right")
        if low and not (low[0] < high[0] and low[1] < high[1]):
            continue
        got = {k: answer[k] for k in body if answer.get(k) is not None}
        rows.append({"path": path, "body": raw, "fields": got})
text = "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"
(HERE / "cases.json").write_text(text)
print(len(rows), "cases,", sum("detail" in row for row in rows), "of them refused;", len(text), "bytes")
