//! What parsing makes of requests: defaults, exact problems, rules across fields, and never a panic.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use kiln_spec as spec;
use serde_json::{Map, Value, json};
use spec::field::Kind;
use spec::{Failure, Field, Mode, Problems, TrainSpec, parse, parse_body};

const URL: &str = "https://example.com/data.zip";

fn mode(path: &str) -> &'static Mode {
    spec::find(path).unwrap()
}

/// A sound value for a field that must be given.
fn sound(field: &Field) -> Value {
    match (field.kind, field.name) {
        (Kind::Url, _) => json!(URL),
        (Kind::Text, _) => json!("a red kite over a field"),
        (Kind::Point, "crop_top_left") => json!([64, 64]),
        (Kind::Point, _) => json!([512, 512]),
        (Kind::TimeRanges, _) => json!([[0.5, 1.5]]),
        (kind, name) => panic!("{name} {kind:?} is required: give this test a value for it"),
    }
}

fn required<'f>(fields: impl Iterator<Item = &'f Field>) -> Map<String, Value> {
    fields.filter(|field| field.required()).map(|field| (field.name.to_owned(), sound(field))).collect()
}

/// The smallest request a mode accepts, with one validation item.
fn minimal(mode: &Mode) -> Value {
    let mut body = required(mode.fields());
    body.insert("validation".to_owned(), json!([required(mode.preview.needs.iter())]));
    Value::Object(body)
}

/// A request with every field of the mode at its default.
fn full(mode: &Mode) -> Value {
    let mut body = minimal(mode);
    for field in mode.fields() {
        if let Some(default) = field.default.value().filter(|_| field.kind != Kind::Items) {
            body[field.name] = default;
        }
    }
    body
}

fn with(mut body: Value, changes: Value) -> Value {
    body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    body
}

fn problems(path: &str, changes: Value) -> Value {
    let body = with(minimal(mode(path)), changes);
    parse(mode(path), &body).unwrap_err().to_body()["detail"].clone()
}

fn accepted(path: &str, changes: Value) -> TrainSpec {
    parse(mode(path), &with(minimal(mode(path)), changes)).unwrap()
}

/// `(path of the value, message)` of every problem.
fn said(path: &str, changes: Value) -> Vec<(String, String)> {
    let body = with(minimal(mode(path)), changes);
    let Problems(problems) = parse(mode(path), &body).unwrap_err();
    problems.iter().map(|problem| (problem.path(), problem.msg.clone())).collect()
}

#[test]
fn the_smallest_request_of_every_mode_gets_the_tables_defaults() {
    for mode in spec::modes() {
        let parsed = parse(mode, &minimal(mode)).unwrap();
        let json = serde_json::to_value(&parsed).unwrap();
        assert_eq!(json["path"], mode.path);
        assert_eq!(parsed, parse(mode, &full(mode)).unwrap(), "{}", mode.path);
        for field in mode.fields() {
            match field.default.value() {
                Some(Value::Null) => assert_eq!(json.get(field.name), None),
                Some(default) if field.kind != Kind::Items => {
                    assert_eq!(json[field.name], default, "{} {}", mode.path, field.name);
                }
                _ => assert_eq!(json[field.name], minimal(mode)[field.name]),
            }
        }
        // and nothing but the mode's own fields
        let keys = json.as_object().unwrap().keys().filter(|key| *key != "path");
        assert!(keys.clone().all(|key| mode.field(key).is_some()), "{}: {keys:?}", mode.path);
    }
}

#[test]
fn a_spec_survives_its_journey_through_the_job_row() {
    for mode in spec::modes() {
        for body in
            [minimal(mode), full(mode), with(minimal(mode), json!({ "learning_rate": 3.3e-5, "rank": 128 }))]
        {
            let parsed = parse(mode, &body).unwrap();
            let text = serde_json::to_string(&parsed).unwrap();
            assert_eq!(serde_json::from_str::<TrainSpec>(&text).unwrap(), parsed);
            let value = serde_json::to_value(&parsed).unwrap();
            assert_eq!(serde_json::from_value::<TrainSpec>(value).unwrap(), parsed);
        }
    }
    let error = serde_json::from_value::<TrainSpec>(json!({ "path": "nothing" })).unwrap_err();
    assert!(error.to_string().contains("no trainer path \"nothing\""), "{error}");
}

#[test]
fn twins_keep_their_own_path_and_share_everything_else() {
    for twin in spec::modes().iter().filter(|mode| mode.twin_of.is_some()) {
        let plain = mode(twin.twin_of.unwrap());
        assert_eq!(plain.twin.unwrap().path, twin.path);
        assert!(plain.fields().eq(twin.fields()));
        assert_eq!((plain.video, plain.audio, plain.targets), (twin.video, twin.audio, twin.targets));
        assert_eq!((plain.layout, plain.preview), (twin.layout, twin.preview));
        let parsed = parse(twin, &minimal(twin)).unwrap();
        assert_eq!(parsed.mode.path, twin.path);
        assert_eq!(TrainSpec { mode: plain, ..parsed }, parse(plain, &minimal(plain)).unwrap());
    }
}

#[test]
fn null_is_not_given_and_unknown_fields_are_ignored() {
    for mode in spec::modes() {
        let nulls: Map<String, Value> =
            mode.fields().filter(|f| !f.required()).map(|f| (f.name.to_owned(), Value::Null)).collect();
        let mut body = with(minimal(mode), Value::Object(nulls));
        body["validation"] = minimal(mode)["validation"].clone();
        body["validation"][0]["reference_audio_url"] = body["validation"][0]["reference_audio_url"].take();
        body["something_else"] = json!([1, 2]);
        body["validation"][0]["another"] = json!({});
        assert_eq!(parse(mode, &body).unwrap(), parse(mode, &minimal(mode)).unwrap(), "{}", mode.path);
    }
}

#[test]
fn all_problems_come_in_one_answer_in_exactly_fals_shape() {
    let body = json!({ "rank": 31, "number_of_steps": "many", "resolution": "4k", "validation": [{}, 7] });
    assert_eq!(
        parse(mode("i2v"), &body).unwrap_err().to_body(),
        json!({ "detail": [
            { "type": "missing", "loc": ["body", "training_data_url"], "msg": "Field required", "input": body },
            { "type": "literal_error", "loc": ["body", "rank"], "msg": "Input should be 8, 16, 32, 64 or 128",
              "input": 31, "ctx": { "expected": "8, 16, 32, 64 or 128" } },
            { "type": "int_parsing", "loc": ["body", "number_of_steps"],
              "msg": "Input should be a valid integer, unable to parse string as an integer", "input": "many" },
            { "type": "literal_error", "loc": ["body", "resolution"], "msg": "Input should be 'low', 'medium' or 'high'",
              "input": "4k", "ctx": { "expected": "'low', 'medium' or 'high'" } },
            { "type": "missing", "loc": ["body", "validation", 0, "prompt"], "msg": "Field required", "input": {} },
            { "type": "missing", "loc": ["body", "validation", 0, "image_url"], "msg": "Field required", "input": {} },
            { "type": "model_attributes_type", "loc": ["body", "validation", 1],
              "msg": "Input should be a valid dictionary or object to extract fields from", "input": 7 },
        ] })
    );
}

#[test]
fn a_body_that_is_absent_or_no_json_says_where() {
    let detail = |body: Option<&[u8]>| parse_body(mode("t2v"), body).unwrap_err().to_body()["detail"].clone();
    let missing = json!([{ "type": "missing", "loc": ["body"], "msg": "Field required", "input": null }]);
    assert_eq!(detail(None), missing);
    assert_eq!(detail(Some(b"")), missing);
    assert_eq!(
        detail(Some("{\"é\": 1,}".as_bytes())),
        json!([{ "type": "json_invalid", "loc": ["body", 8], "msg": "JSON decode error", "input": {},
                 "ctx": { "error": "Expecting property name enclosed in double quotes" } }])
    );
    // what Python reads and JSON forbids
    let nan = detail(Some(b"{\"learning_rate\": NaN}"));
    assert_eq!(nan[0]["type"], "json_invalid");
    assert_eq!(nan[0]["loc"], json!(["body", 18]));
    assert_eq!(detail(Some(b"{\"a\": \"\xff\"}"))[0]["ctx"]["error"], "Body is not UTF-8");
    let surrogate = detail(Some("{\n\"ééé\": \"\\ud800\"}".as_bytes()));
    assert_eq!(surrogate[0]["type"], "json_invalid");
    assert!((9..17).contains(&surrogate[0]["loc"][1].as_u64().unwrap()), "{surrogate}");
    let deep = vec![b'['; 100_000];
    assert_eq!(detail(Some(&deep))[0]["type"], "json_invalid");
}

#[test]
fn an_address_must_be_one_that_can_be_fetched() {
    assert_eq!(
        problems("t2v", json!({ "training_data_url": "s3://bucket/data.zip" })),
        json!([{ "type": "file_download_error", "loc": ["body", "training_data_url"],
                 "msg": "Failed to download the file: give an http:// or https:// address or a data: URI",
                 "url": "https://docs.fal.ai/errors/#file_download_error", "input": "s3://bucket/data.zip" }])
    );
    for url in ["HTTPS://a/b", "http://127.0.0.1:9/x", "data:application/zip;base64,UEsFBg=="] {
        assert_eq!(accepted("t2v", json!({ "training_data_url": url })).training_data_url, url);
    }
}

#[test]
fn a_rank_may_be_spelled_as_fals_page_spells_it() {
    assert_eq!(accepted("t2v", json!({ "rank": "64" })).rank, 64);
    assert_eq!(problems("t2v", json!({ "rank": "65" }))[0]["type"], "literal_error");
}

#[test]
fn a_frame_count_off_the_latent_grid_names_the_legal_ones() {
    let legal = "9, 17, 25, 33, 41, 49, 57, 65, 73, 81, 89, 97, 105, 113 or 121";
    for name in ["number_of_frames", "validation_number_of_frames"] {
        assert_eq!(
            problems("t2v", json!({ name: 90 })),
            json!([{ "type": "value_error", "loc": ["body", name], "input": 90, "ctx": { "error": {} },
                     "msg": format!("Value error, {name} must be one more than a multiple of 8: {legal}") }])
        );
        assert_eq!(problems("t2v", json!({ name: 1 }))[0]["type"], "greater_than_equal");
    }
    assert_eq!(problems("extend-prefix", json!({ "conditioning_frames": 16 }))[0]["type"], "value_error");
    assert_eq!(problems("extend-suffix", json!({ "conditioning_frames": 9 }))[0]["type"], "multiple_of");
}

#[test]
fn a_clean_window_must_leave_something_to_generate() {
    // the largest legal windows at the default 89 frames
    let previews_off = json!({ "validation": [] });
    for (path, largest, next) in [("extend-prefix", 81, 89), ("extend-suffix", 88, 96)] {
        accepted(path, json!({ "conditioning_frames": largest }));
        let expected = |clip: &str| {
            format!(
                "Value error, conditioning_frames {next} leaves nothing to generate of {clip} 89: use at most {largest}, or raise {clip}"
            )
        };
        assert_eq!(
            said(path, json!({ "conditioning_frames": next })),
            ["number_of_frames", "validation_number_of_frames"]
                .map(|clip| ("conditioning_frames".to_owned(), expected(clip)))
        );
        // previews count only when there are some
        let longer = json!({ "conditioning_frames": next, "number_of_frames": 121 });
        assert_eq!(said(path, longer.clone()).len(), 1);
        accepted(path, with(longer, previews_off.clone()));
    }
    let none_fits =
        said("extend-prefix", json!({ "number_of_frames": 9, "conditioning_frames": 9, "validation": [] }));
    assert_eq!(
        none_fits[0].1,
        "Value error, conditioning_frames 9 leaves nothing to generate of number_of_frames 9: raise number_of_frames"
    );
}

#[test]
fn clean_seconds_must_be_fewer_than_the_clips() {
    for path in ["audio-extend-prefix", "audio-extend-suffix"] {
        accepted(path, json!({ "conditioning_seconds": 4.9 }));
        for seconds in [5.0, 6.0] {
            assert_eq!(
                said(path, json!({ "conditioning_seconds": seconds })),
                [(
                    "conditioning_seconds".to_owned(),
                    "Value error, conditioning_seconds must be less than audio_duration_seconds (5)"
                        .to_owned()
                )]
            );
        }
    }
}

#[test]
fn reference_factors_must_fit_training_and_previews() {
    // medium 1:1 trains with 4, previews of high 1:1 cannot
    for path in ["v2v", "av2av", "ic-lora/v2v", "ic-lora/av2av"] {
        accepted(path, json!({ "reference_downscale_factor": 4, "validation": [] }));
        assert_eq!(
            said(path, json!({ "reference_downscale_factor": 4 })),
            [("reference_downscale_factor".to_owned(), "Value error, reference_downscale_factor 4 does not fit, the 768x768 training size and the 960x960 preview size divided by it must stay multiples of 32: use 1, 2, 3 or 6".to_owned())]
        );
        assert_eq!(
            said(path, json!({ "reference_temporal_scale_factor": 2, "validation": [] })),
            [("reference_temporal_scale_factor".to_owned(), "Value error, reference_temporal_scale_factor 2 does not fit, (number_of_frames - 1) / 8 = 11 must be divisible by it: use 1".to_owned())]
        );
        accepted(
            path,
            json!({ "reference_temporal_scale_factor": 6, "number_of_frames": 97, "validation_number_of_frames": 49 }),
        );
    }
}

#[test]
fn the_kept_rectangle_is_in_order_inside_and_leaves_a_surround() {
    let corners = |low: [i64; 2], high: [i64; 2]| json!({ "crop_top_left": low, "crop_bottom_right": high });
    let messages = |low, high| said("outpaint", corners(low, high));
    assert_eq!(
        accepted("outpaint", corners([33, 40], [700, 768])).crop().unwrap(),
        spec::geometry::Rect { x1: 32, y1: 32, x2: 672, y2: 768 }
    );
    assert_eq!(
        messages([64, 64], [64, 65])[0].1,
        "Value error, crop_bottom_right must lie to the right of and below crop_top_left: x2 > 64 and y2 > 64"
    );
    let outside = messages([-1, 0], [100, 769]);
    assert_eq!(outside[0], ("crop_top_left".to_owned(), "Value error, crop_top_left must lie inside the training frame: x from 0 to 768 and y from 0 to 768".to_owned()));
    assert_eq!((outside.len(), outside[1].0.as_str()), (2, "crop_bottom_right"));
    assert!(messages([33, 33], [63, 63])[0].1.contains("empty rectangle"));
    assert!(messages([31, 31], [768, 768])[0].1.contains("nothing is left to generate"));
    // far beyond any integer type
    let huge = json!({ "crop_top_left": ["9".repeat(60), 0], "crop_bottom_right": [1e300, 5] });
    assert_eq!(said("outpaint", huge).len(), 2);
}

#[test]
fn a_middle_keyframe_is_needed_on_every_item_that_lacks_it() {
    let item = json!({ "prompt": "a", "start_image_url": URL, "end_image_url": URL });
    let complete = with(item.clone(), json!({ "middle_image_url": URL }));
    let changes = |on: bool| json!({ "include_middle_keyframe": on, "validation": [complete, item, with(item.clone(), json!({ "middle_image_url": null }))] });
    accepted("interpolate", changes(false));
    let found = said("interpolate", changes(true));
    assert_eq!(
        found.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(),
        ["validation.1.middle_image_url", "validation.2.middle_image_url"]
    );
}

#[test]
fn time_ranges_have_a_start_before_an_end_inside_the_clip() {
    let changes =
        |ranges: Value| json!({ "validation": [{ "prompt": "a", "audio_url": URL, "time_ranges": ranges }] });
    let parsed = accepted("audio-inpaint", changes(json!([[0, "1.5"], [4.9, 60]])));
    assert_eq!(parsed.validation[0].time_ranges, Some(vec![[0.0, 1.5], [4.9, 60.0]]));
    assert_eq!(said("audio-inpaint", changes(json!([])))[0].0, "validation.0.time_ranges");
    for range in
        [json!([2, 2]), json!([3, 1]), json!([-1, 1]), json!([5, 6]), json!(["nan", 1]), json!([0, "inf"])]
    {
        let found = said("audio-inpaint", changes(json!([[1, 2], range])));
        assert!(
            found.len() == 1 && found[0].0.starts_with("validation.0.time_ranges.1"),
            "{range}: {found:?}"
        );
    }
    // an unsound item does not hide another one's ranges
    let mut both = changes(json!([[2, 1]]));
    both["validation"].as_array_mut().unwrap().push(json!({ "prompt": 1 }));
    assert_eq!(said("audio-inpaint", both).len(), 4);
}

#[test]
fn a_rule_is_heard_even_when_other_fields_are_wrong() {
    let found = said("v2v", json!({ "rank": 1, "reference_temporal_scale_factor": 5, "validation": "x" }));
    assert_eq!(
        found.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(),
        ["rank", "validation", "reference_temporal_scale_factor"]
    );
}

#[test]
fn lists_have_a_limit_and_echoes_stay_small() {
    let items = |count: usize| json!({ "validation": vec![json!({ "prompt": "a" }); count] });
    accepted("t2v", items(spec::MAX_VALIDATION_ITEMS));
    let detail = problems("t2v", items(spec::MAX_VALIDATION_ITEMS + 1));
    assert_eq!(detail[0]["type"], "sequence_too_long");
    assert_eq!(detail[0]["ctx"], json!({ "max_length": 64 }));
    let ranges = json!({ "validation": [{ "prompt": "a", "audio_url": URL, "time_ranges": vec![json!([1]); 100_000] }] });
    assert_eq!(problems("audio-inpaint", ranges)[0]["type"], "sequence_too_long");

    assert!(mode("t2v").field("validation").unwrap().text.contains(&spec::MAX_VALIDATION_ITEMS.to_string()));

    // nor does an answer hold thousands of problems
    let bad = vec![json!(["x", "y"]); 1000];
    let item = json!({ "prompt": "a", "audio_url": URL, "time_ranges": bad });
    let detail = problems("audio-inpaint", json!({ "validation": vec![item; 64] }));
    assert_eq!(detail.as_array().unwrap().len(), 501);
    assert_eq!(detail[500]["msg"], "Value error, 127500 more problems are left out of this answer");

    // an archive in the body does not come back with every problem
    let archive = format!("data:application/zip;base64,{}", "A".repeat(1_000_000));
    let body = json!({ "training_data_url": archive, "validation": vec![json!({ "x": archive }); 64], "many": vec![0; 1_000_000] });
    let answer = parse(mode("outpaint"), &body).unwrap_err().to_body();
    assert_eq!(answer["detail"].as_array().unwrap().len(), 2 + 64 * 2);
    let size = answer.to_string().len();
    assert!(size < 150_000, "{size}");
    let echoed = answer["detail"][0]["input"]["training_data_url"].as_str().unwrap();
    assert!(
        echoed.starts_with("data:application/zip;base64,AAAA")
            && echoed.ends_with("… (1000028 bytes in all)"),
        "{echoed}"
    );
    assert_eq!(answer["detail"][2]["input"]["x"], echoed);
}

#[test]
fn problems_and_failures_survive_the_job_row() {
    let refused =
        parse(mode("i2v"), &json!({ "rank": null, "validation": [null], "training_data_url": null }))
            .unwrap_err();
    let failure = Failure::from(refused.clone());
    let stored: Failure = serde_json::from_str(&serde_json::to_string(&failure).unwrap()).unwrap();
    assert_eq!(stored, failure);
    assert_eq!(stored.body(), refused.to_body());
    assert_eq!(stored.body()["detail"][0].get("input"), Some(&Value::Null));
    assert_eq!(stored.error_line(), "training_data_url: Input should be a valid string (and 1 more)");
}

mod never_a_panic {
    use super::{full, minimal, mode};
    use kiln_spec as spec;
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    /// Any JSON value, with texts that look like numbers, truths and addresses among the texts.
    fn any_json() -> impl Strategy<Value = Value> {
        let text = prop_oneof![
            any::<String>(),
            "[-+]?[0-9_]{0,40}(\\.[0-9_]{0,5})?([eE][-+]?[0-9]{1,4})?",
            prop::sample::select(vec![
                "true",
                "no",
                "nan",
                "-inf",
                "low",
                "16:9",
                "https://a/b",
                "data:,",
                "\u{a0}7 "
            ])
            .prop_map(str::to_owned),
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            (-10_i64..200).prop_map(Value::from),
            text.prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            let key = prop_oneof![any::<String>(), field_name()];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((key, inner), 0..6)
                    .prop_map(|pairs| Value::Object(Map::from_iter(pairs))),
            ]
        })
    }

    fn field_name() -> impl Strategy<Value = String> {
        let names: Vec<&str> = spec::modes()
            .iter()
            .flat_map(|mode| mode.fields().chain(mode.preview.needs))
            .map(|field| field.name)
            .collect();
        prop::sample::select(names).prop_map(str::to_owned)
    }

    fn any_mode() -> impl Strategy<Value = &'static spec::Mode> {
        prop::sample::select(spec::modes().iter().collect::<Vec<_>>())
    }

    /// A spec that obeys the rules, or at least one problem, each of them sayable.
    fn check(mode: &'static spec::Mode, body: &Value) -> Result<(), TestCaseError> {
        match spec::parse(mode, body) {
            Ok(parsed) => {
                let stored = serde_json::to_string(&parsed).unwrap();
                prop_assert_eq!(&serde_json::from_str::<spec::TrainSpec>(&stored).unwrap(), &parsed);
                prop_assert_eq!(parsed.number_of_frames % 8, 1);
                // what was accepted is accepted again, with the same meaning
                let again = spec::parse(mode, &serde_json::to_value(&parsed).unwrap());
                prop_assert_eq!(again, Ok(parsed));
            }
            Err(problems) => {
                prop_assert!(!problems.is_empty());
                let detail = problems.to_body();
                for problem in detail["detail"].as_array().unwrap() {
                    prop_assert_eq!(&problem["loc"][0], "body");
                    prop_assert!(problem["msg"].is_string() && problem["type"].is_string());
                }
                let stored = serde_json::to_string(&problems).unwrap();
                prop_assert_eq!(&serde_json::from_str::<spec::Problems>(&stored).unwrap(), &problems);
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

        #[test]
        fn any_json_value_parses_or_says_why(mode in any_mode(), body in any_json()) {
            check(mode, &body)?;
        }

        #[test]
        fn a_valid_body_with_any_values_changed_parses_or_says_why(
            mode in any_mode(),
            whole in any::<bool>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any_json(), any::<bool>()), 1..4),
        ) {
            let mut body = if whole { full(mode) } else { minimal(mode) };
            for (index, value, inside) in changes {
                let names: Vec<&str> = if inside {
                    mode.preview.needs.iter().map(|field| field.name).collect()
                } else {
                    mode.fields().map(|field| field.name).collect()
                };
                let name = names[index.index(names.len())];
                match body.pointer_mut("/validation/0").filter(|item| inside && item.is_object()) {
                    Some(item) => item[name] = value,
                    None => body[name] = value,
                }
            }
            check(mode, &body)?;
        }

        #[test]
        fn any_numbers_within_their_fields_parse_or_break_a_rule(
            mode in any_mode(),
            seed in prop::collection::vec((any::<prop::sample::Index>(), -1.0..130.0_f64), 1..8),
        ) {
            let mut body = minimal(mode);
            for (index, number) in seed {
                let fields: Vec<_> = mode.fields().collect();
                let field = fields[index.index(fields.len())];
                body[field.name] = match field.kind {
                    spec::field::Kind::Int { .. } => json!(number as i64),
                    spec::field::Kind::Number { .. } => json!(number),
                    spec::field::Kind::Point => json!([number as i64 * 8, number as i64 * 7]),
                    _ => continue,
                };
            }
            check(mode, &body)?;
        }

        #[test]
        fn any_bytes_parse_or_say_why(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Err(problems) = spec::parse_body(mode("t2v"), Some(&bytes)) {
                prop_assert!(!problems.is_empty());
            }
        }

        #[test]
        fn any_damaged_json_says_an_offset_within_it(
            at in any::<prop::sample::Index>(),
            junk in "[\\[\\]{}\",:0-9eE+.\\\\untf é-]{0,3}",
            cut in any::<bool>(),
        ) {
            let mut text = full(mode("av2av")).to_string();
            let at = at.index(text.len());
            if text.is_char_boundary(at) {
                if cut { text.truncate(at); }
                text.insert_str(at.min(text.len()), &junk);
            }
            if let Err(problems) = spec::read_json(text.as_bytes()) {
                let detail = problems.to_body();
                prop_assert_eq!(&detail["detail"][0]["type"], "json_invalid");
                let offset = detail["detail"][0]["loc"][1].as_u64().unwrap();
                prop_assert!(offset <= text.chars().count() as u64, "{} in {}", offset, text);
            }
        }
    }
}
