//! Every path's table rows and schemas say what `tests/golden/endpoints.json` says, and nothing else.
//!
//! Each object of that file is taken apart key by key (`Take`); a key that no line here reads fails the test, so what is
//! added there has to be looked at here. Prose is in kiln's own words: its presence is compared, not its wording.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use kiln_spec as spec;
use serde_json::{Map, Value, json};
use spec::condition::{Chance, Window};
use spec::field::{Kind, NEGATIVE_PROMPT};
use spec::layout::{Caption, Media, Member, MinLength, Names, Needed, RECOMMENDED_ITEMS, Sound};
use spec::{Condition, Field, Mode, Role, geometry, schema};

/// An object that must be read to the last key.
struct Take {
    whose: String,
    map: Map<String, Value>,
}

impl Take {
    fn new(whose: impl Into<String>, value: &Value) -> Take {
        let whose = whose.into();
        let map = value.as_object().unwrap_or_else(|| panic!("{whose} is no object")).clone();
        Take { whose, map }
    }
    fn opt(&mut self, key: &str) -> Option<Value> {
        self.map.shift_remove(key)
    }
    fn get(&mut self, key: &str) -> Value {
        self.opt(key).unwrap_or_else(|| panic!("{}: no {key}", self.whose))
    }
    fn text(&mut self, key: &str) -> String {
        let value = self.get(key);
        value.as_str().unwrap_or_else(|| panic!("{}: {key} is no text", self.whose)).to_owned()
    }
    fn prose(&mut self, key: &str) {
        assert!(!self.text(key).is_empty());
    }
    fn sub(&mut self, key: &str) -> Take {
        Take::new(format!("{}.{key}", self.whose), &self.get(key))
    }
    /// Where a fact comes from, not a fact.
    fn source(&mut self, key: &str) {
        self.opt(key);
    }
    fn done(self) {
        assert!(self.map.is_empty(), "{}: unread {:?}", self.whose, self.map.keys().collect::<Vec<_>>());
    }
}

fn golden() -> Take {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/endpoints.json");
    Take::new("endpoints.json", &serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap())
}

#[track_caller]
fn same(whose: &str, ours: &Value, theirs: &Value) {
    assert!(equal(ours, theirs), "{whose}\n ours:   {ours}\n theirs: {theirs}");
}

/// Equal with numbers by value.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| equal(v, w)))
        }
        (a, b) => a == b,
    }
}

#[test]
fn the_family_is_the_published_one() {
    let mut root = golden();
    let mut meta = root.sub("$meta");
    assert_eq!(meta.text("family"), format!("{}/{}", spec::OWNER, spec::ALIAS));
    assert_eq!(meta.get("endpoint_count"), spec::modes().len());
    meta.prose("model");
    meta.source("source_tags");
    meta.source("conventions");
    meta.done();

    let endpoints = root.sub("endpoints");
    let ids: Vec<String> = spec::modes().iter().map(Mode::endpoint_id).collect();
    assert_eq!(ids, endpoints.map.keys().cloned().collect::<Vec<_>>());
    assert_eq!(spec::modes().iter().filter(|mode| mode.twin_of.is_none()).count(), 18);

    let mut shared = root.sub("$shared");
    assert_eq!(shared.text("validation_negative_prompt_default"), NEGATIVE_PROMPT);
    object_schema("File", &schema::file_schema(), shared.sub("file"), &mut |_, _| ());
    buckets(shared.sub("resolution_buckets"));
    factors(&mut shared);
    let mut latent = shared.sub("latent");
    assert_eq!(latent.get("video_spatial_factor"), geometry::SPATIAL);
    assert_eq!(latent.get("video_temporal_factor"), geometry::TEMPORAL);
    assert_eq!(latent.text("video_latent_frames"), "(frames - 1) / 8 + 1");
    assert!((1..=121).all(|frames| geometry::latent_frames(frames) == (frames - 1) / 8 + 1));
    assert_eq!(latent.get("audio_latents_per_second").as_f64(), Some(geometry::AUDIO_LATENTS_PER_SECOND));
    latent.source("source");
    latent.done();
    // a limit on the archive: `dataset` owns it
    let mut limits = shared.sub("limits");
    let mut files = limits.sub("max_media_files_per_run");
    assert_eq!(files.get("value"), 1000);
    files.source("source");
    files.done();
    limits.done();
    let mut steps = shared.sub("number_of_steps_maximum");
    let current = steps.get("current");
    for mode in spec::modes() {
        assert_eq!(schema::input_schema(mode)["properties"]["number_of_steps"]["maximum"], current);
    }
    steps.source("earlier");
    steps.source("source");
    steps.done();
    shared.done();
    root.done();
}

fn buckets(mut golden: Take) {
    for word in ["status", "source", "unit"] {
        golden.source(word);
    }
    let mut buckets = golden.sub("buckets");
    for (resolution, shape, size) in geometry::BUCKETS {
        let theirs = &buckets.map[resolution.as_str()][shape.as_str()];
        assert_eq!(theirs, &json!([size.width_px, size.height_px]));
        assert!(size.width_px.is_multiple_of(32) && size.height_px.is_multiple_of(32));
        assert_eq!(geometry::bucket(resolution, shape), size);
    }
    let count: usize = buckets.map.values().map(|shapes| shapes.as_object().unwrap().len()).sum();
    assert_eq!(count, geometry::BUCKETS.len());
    buckets.map.clear();
    golden.done();
}

fn factors(shared: &mut Take) {
    let mut spatial = shared.sub("reference_downscale_factor_allowed");
    spatial.source("source");
    let by_bucket = spatial.get("by_bucket");
    for (resolution, shape, size) in geometry::BUCKETS {
        let ours = json!(geometry::spatial_factors(&[size], 8));
        assert_eq!(ours, by_bucket[resolution.as_str()][shape.as_str()], "{resolution:?} {shape:?}");
    }
    spatial.done();
    let mut temporal = shared.sub("reference_temporal_scale_factor_allowed");
    temporal.source("source");
    let by_frames = temporal.get("by_number_of_frames");
    assert_eq!(by_frames.as_object().unwrap().len(), 15);
    for (frames, factors) in by_frames.as_object().unwrap() {
        assert_eq!(&json!(geometry::temporal_factors(&[frames.parse().unwrap()], 8)), factors, "{frames}");
    }
    temporal.done();
}

#[test]
fn every_path_says_what_is_published() {
    let mut root = golden();
    let mut endpoints = root.sub("endpoints");
    for mode in spec::modes() {
        let mut golden = endpoints.sub(&mode.endpoint_id());
        assert_eq!(golden.text("title"), format!("LTX 2.3 Trainer (V2) - {}", mode.title));
        golden.source("confidence");
        golden.source("published_price_usd_per_step");
        golden.source("notes");
        input(mode, golden.sub("input"));
        item(mode, golden.sub("validation_item"));
        output(mode, golden.sub("output"));
        dataset(mode, golden.sub("dataset"));
        training(mode, golden.sub("training"));
        golden.done();
    }
    endpoints.done();
}

/// Compares an object schema of ours with a golden one; `extra` reads what a property holds beyond the schema.
fn object_schema(whose: &str, ours: &Value, mut golden: Take, extra: &mut dyn FnMut(&str, &mut Take)) {
    let mut ours = Take::new(whose, ours);
    golden.source("x-source");
    golden.source("title");
    ours.prose("title");
    same(whose, &ours.get("type"), &golden.get("type"));
    same(whose, &ours.get("required"), &golden.get("required"));
    let (properties, published) = (ours.sub("properties"), golden.sub("properties"));
    let names: Vec<&String> = properties.map.keys().collect();
    assert_eq!(names, published.map.keys().collect::<Vec<_>>(), "{whose}: names and order");
    assert_eq!(ours.get("x-fal-order-properties"), json!(names));
    for (name, published) in &published.map {
        let whose = format!("{whose}.{name}");
        let mut published = Take::new(&whose, published);
        let mut property = Take::new(&whose, &properties.map[name]);
        property.prose("title");
        property.prose("description");
        published.prose("description");
        published.source("x-source");
        extra(name, &mut published);
        if let Some(reference) = property.opt("allOf") {
            assert_eq!(reference, json!([{ "$ref": "#/components/schemas/File" }]), "{whose}");
            assert_eq!(published.text("$ref"), "#/$shared/file");
        }
        let ours = plain(property.map);
        let mut theirs = Value::Object(published.map);
        if let Some(items) = theirs.get_mut("items").and_then(Value::as_object_mut) {
            items.remove("x-source");
        }
        same(&whose, &ours, &theirs);
    }
    ours.done();
    golden.done();
}

/// `anyOf` with null as the golden file writes it: a list of types.
fn plain(mut schema: Map<String, Value>) -> Value {
    if let Some(choices) = schema.remove("anyOf") {
        let [Value::Object(kind), null] = choices.as_array().unwrap().as_slice() else { panic!("{choices}") };
        assert_eq!(null, &json!({ "type": "null" }));
        schema.extend(kind.clone());
        schema["type"] = json!([schema["type"], "null"]);
    }
    Value::Object(schema)
}

fn input(mode: &Mode, mut golden: Take) {
    assert_eq!(golden.text("title"), mode.path);
    let rules = golden.get("x-rules");
    let mut theirs: Vec<String> = Vec::new();
    for rule in rules.as_array().unwrap() {
        let mut rule = Take::new("rule", rule);
        theirs.push(rule.text("id"));
        rule.prose("expr");
        assert_eq!(rule.text("on_fail"), "422");
        rule.source("source");
        rule.done();
    }
    let mut ours: Vec<&str> = mode.rules().iter().map(|rule| rule.id()).collect();
    ours.sort_unstable();
    theirs.sort_unstable();
    assert_eq!(ours, theirs, "{}: rules", mode.path);

    let mut schema = schema::input_schema(mode);
    assert_eq!(
        schema["properties"]["validation"]["items"],
        json!({ "$ref": format!("#/components/schemas/{}", mode.preview.item) })
    );
    let pointer = format!("#/endpoints/{}/validation_item", mode.endpoint_id().replace('/', "~1"));
    schema["properties"]["validation"]["items"] = json!({ "$ref": pointer });
    object_schema(mode.path, &schema, golden, &mut |name, published| {
        let field: &Field = mode.field(name).unwrap();
        published.source("x-earlier-maximum");
        let modulus = published.opt("x-mod").map(|value| {
            let mut modulus = Take::new(name, &value);
            modulus.source("source");
            let pair = (modulus.get("divisor").as_i64().unwrap(), modulus.get("remainder").as_i64().unwrap());
            modulus.done();
            pair
        });
        assert_eq!(field.modulus.map(|m| (m.divisor, m.remainder)), modulus, "{}.{name}", mode.path);
        if let Some(allowed) = published.opt("x-allowed") {
            assert_eq!(json!(field.legal_ints()), allowed);
        }
    });
}

fn item(mode: &Mode, golden: Take) {
    assert_eq!(golden.map["title"], mode.preview.item);
    object_schema(mode.preview.item, &schema::item_schema(mode), golden, &mut |_, _| ());
}

fn output(mode: &Mode, mut golden: Take) {
    let preview = mode.preview.output.as_str();
    assert_eq!(golden.text("x-preview"), preview);
    object_schema("output", &schema::output_schema(mode), golden, &mut |name, published| {
        if let Some(present) = published.opt("x-present") {
            let expected = if name == preview { "when validation is non-empty" } else { "never" };
            assert_eq!(present, expected, "{} {name}", mode.path);
        }
    });
}

fn dataset(mode: &Mode, mut golden: Take) {
    let layout = &mode.layout;
    golden.source("sources");
    golden.source("not_verified");
    assert_eq!(golden.text("kind"), layout.name);
    assert_eq!(golden.get("recommended_min_items"), RECOMMENDED_ITEMS);

    let members = golden.get("members");
    assert_eq!(members.as_array().unwrap().len(), layout.members.len(), "{}", mode.path);
    for (ours, theirs) in layout.members.iter().zip(members.as_array().unwrap()) {
        member(mode, ours, Take::new(mode.path, theirs));
    }

    let mut caption = golden.sub("caption");
    assert_eq!(caption.text("suffix"), "");
    assert_eq!(caption.get("extensions"), json!([".txt"]));
    let required = match layout.caption {
        Caption::Optional => json!(false),
        Caption::UnlessTrigger => json!("required unless trigger_phrase is set"),
    };
    assert_eq!(caption.get("required"), required);
    caption.source("source");
    caption.done();

    let names = golden.text("duplicate_base_names");
    let expected = match layout.names {
        Names::PerFolder => "distinct per subfolder",
        Names::Unique => "file names must be unique across the archive",
    };
    assert!(names.starts_with(expected), "{}: {names}", mode.path);

    let images = golden.text("images");
    let with_images: Vec<&Member> =
        layout.members.iter().filter(|m| m.accepts.iter().any(|a| a.media == Media::Image)).collect();
    let expected: &[&str] = match with_images.as_slice() {
        [] if mode.audio_only() => &["not applicable"],
        [] => &["rejected", "not accepted", "not known; accept only video pairs"],
        [one] if one.suffix.is_empty() => &["allowed, but videos and images must not be mixed"],
        [one] if one.suffix == "_mask" => &["only as masks"],
        [one] if one.suffix == "_start" => &["only as _start"],
        _ => &[],
    };
    assert!(expected.iter().any(|start| images.starts_with(start)), "{}: {images}", mode.path);
    assert_eq!(layout.takes_images(), images.starts_with("allowed"));

    let sound = golden.text("audio_track");
    let expected: &[&str] = match layout.sound {
        Sound::Ignored => &["ignored"],
        Sound::Decides => &["optional; automatic detection"],
        Sound::WhenAsked => {
            &["required on every training and validation clip when with_audio is true, else ignored"]
        }
        Sound::OnEveryClip => &["required on every clip", "required on reference and target"],
        Sound::FromGroup => &["an audio source is required per group"],
        Sound::Itself => &["the clip itself", "both sides"],
    };
    assert!(expected.iter().any(|start| sound.starts_with(start)), "{}: {sound}", mode.path);

    let mut length = golden.sub("min_length");
    let (unit, value, when) = match layout.min_length {
        MinLength::Frames => ("frames", "number_of_frames", "auto_scale_input is false"),
        MinLength::Seconds => ("seconds", "audio_duration_seconds", "always"),
    };
    assert_eq!((length.text("unit").as_str(), length.text("value").as_str()), (unit, value));
    assert_eq!(length.text("applies_when"), when);
    assert!(length.text("short_item").contains("skipped"));
    assert!(length.text("none_left").contains("422"));
    length.done();
    golden.done();
}

fn member(mode: &Mode, ours: &Member, mut golden: Take) {
    assert_eq!(golden.text("role"), ours.part.as_str());
    assert_eq!(golden.text("suffix"), ours.suffix);
    let mut media: Vec<&str> = ours.accepts.iter().map(|accepts| accepts.media.as_str()).collect();
    media.sort_unstable();
    let mut theirs: Vec<String> = serde_json::from_value(golden.get("media")).unwrap();
    theirs.sort_unstable();
    assert_eq!(media, theirs, "{}", mode.path);
    let extensions = golden.get("extensions");
    for accepts in ours.accepts {
        let theirs = match &extensions {
            Value::Array(_) => &extensions,
            by_media => &by_media[accepts.media.as_str()],
        };
        let mut theirs: Vec<String> = serde_json::from_value(theirs.clone()).unwrap();
        let mut listed = accepts.extensions.to_vec();
        theirs.sort_unstable();
        listed.sort_unstable();
        assert_eq!(listed, theirs, "{} {}", mode.path, ours.part.as_str());
        for extension in listed {
            assert_eq!(ours.media_of(extension), Some(accepts.media));
            assert_eq!(ours.media_of(&extension[1..].to_uppercase()), Some(accepts.media));
        }
    }
    let required = match ours.needed {
        Needed::Always => json!(true),
        Needed::UnlessStartHasTrack => json!("unless the _start video has an audio track"),
    };
    assert_eq!(golden.get("required"), required);
    golden.source("source");
    golden.source("note");
    golden.done();
}

fn training(mode: &Mode, mut golden: Take) {
    golden.source("source");
    role(mode, mode.video, golden.sub("video"));
    role(mode, mode.audio, golden.sub("audio"));
    let mut targets = golden.sub("lora_targets");
    assert_eq!(targets.text("set"), mode.targets.as_str());
    assert_eq!(targets.get("modules"), json!(mode.targets.patterns()));
    targets.source("source");
    targets.done();
    golden.done();
}

fn role(mode: &Mode, ours: Role, mut golden: Take) {
    let expected: &[&str] = match ours {
        Role::Generated(_) => &["generated"],
        Role::IfTrained(_) => &[
            "generated (when audio is trained), otherwise absent",
            "generated with the same prefix window when with_audio, otherwise absent",
            "generated with the same suffix window when with_audio, otherwise absent",
        ],
        Role::Frozen => &["frozen conditioning (clean, no loss)"],
        Role::Absent => &["absent"],
    };
    let theirs = golden.text("role");
    assert!(expected.contains(&theirs.as_str()), "{}: {theirs}", mode.path);
    let conditions = golden.get("conditions");
    let conditions = conditions.as_array().unwrap();
    assert_eq!(conditions.len(), ours.conditions().len(), "{}", mode.path);
    for (ours_one, theirs) in ours.conditions().iter().zip(conditions) {
        condition(mode, ours, *ours_one, Take::new(mode.path, theirs));
    }
    golden.done();
}

fn condition(mode: &Mode, role: Role, ours: Condition, mut golden: Take) {
    assert_eq!(golden.text("type"), ours.name(), "{}", mode.path);
    golden.source("source");
    if matches!(role, Role::IfTrained(_)) {
        assert_eq!(golden.text("only_when"), "with_audio");
        assert_eq!(golden.text("temporal_boundary"), "audio latents covering conditioning_frames");
        assert!(matches!(ours, Condition::Prefix(Window::Frames) | Condition::Suffix(Window::Frames)));
        return golden.done();
    }
    let chance = match ours.chance() {
        Chance::Always => json!(1.0),
        Chance::FirstFrameP => json!("first_frame_conditioning_p"),
    };
    assert_eq!(golden.get("probability"), chance, "{}", mode.path);
    match ours {
        Condition::Prefix(Window::Frames) => {
            assert_eq!(golden.text("temporal_boundary"), "(conditioning_frames-1)//8+1");
            assert!((9..=121).step_by(8).all(|n| geometry::prefix_latents(n) == (n - 1) / 8 + 1));
        }
        Condition::Suffix(Window::Frames) => {
            assert_eq!(golden.text("temporal_boundary"), "conditioning_frames//8");
            assert!((8..=120).step_by(8).all(|n| geometry::suffix_latents(n) == n / 8));
        }
        Condition::Prefix(Window::Seconds) | Condition::Suffix(Window::Seconds) => {
            assert_eq!(golden.text("temporal_boundary"), "round(conditioning_seconds × 25) audio latents");
            assert_eq!(geometry::audio_window(1.0, 125), 25);
        }
        Condition::SpatialCrop => {
            assert_eq!(golden.text("region"), "(y1,x1,y2,x2) from crop_top_left/crop_bottom_right");
        }
        Condition::Keyframes => {
            assert_eq!(golden.text("frames"), "first, last, and middle when include_middle_keyframe");
        }
        Condition::FirstFrame(_) | Condition::Mask | Condition::Reference => (),
    }
    golden.done();
}

#[test]
fn every_openapi_document_holds_together() {
    for mode in spec::modes() {
        let document = schema::openapi(mode, "http://kiln.example:8080");
        let id = mode.endpoint_id();
        assert_eq!(document["openapi"], "3.0.4");
        assert_eq!(document["info"]["title"], format!("Queue OpenAPI for {id}"));
        assert_eq!(document["info"]["x-fal-metadata"]["endpointId"], id);
        assert_eq!(document["servers"], json!([{ "url": "http://kiln.example:8080/queue" }]));
        // tools find the input by the one `post` whose path has no `/requests/`
        let posts: Vec<_> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .filter(|(path, operations)| operations.get("post").is_some() && !path.contains("/requests/"))
            .collect();
        let [(path, post)] = posts.as_slice() else { panic!("{posts:?}") };
        assert_eq!(**path, format!("/{id}"));
        let input = &post["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"];
        assert_eq!(&resolve(&document, input), &schema::input_schema(mode));
        assert_eq!(document["paths"].as_object().unwrap().len(), 4);
        // every reference leads somewhere, every component keeps its order
        let mut references = Vec::new();
        collect_references(&document, &mut references);
        assert!(references.len() > 5);
        for reference in references {
            let component = resolve(&document, &reference);
            let order: Vec<&String> = component["properties"].as_object().unwrap().keys().collect();
            assert_eq!(component["x-fal-order-properties"], json!(order), "{reference}");
        }
    }
    let names: Vec<String> = ["t2v", "ic-lora/av2av-masked"]
        .iter()
        .map(|path| schema::input_schema(spec::find(path).unwrap())["title"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["Ltx23TrainerV2T2vInput", "Ltx23TrainerV2IcLoraAv2avMaskedInput"]);
}

fn resolve(document: &Value, reference: &Value) -> Value {
    let pointer = reference.as_str().unwrap().strip_prefix('#').unwrap();
    document.pointer(pointer).unwrap_or_else(|| panic!("{reference} leads nowhere")).clone()
}

fn collect_references(value: &Value, into: &mut Vec<Value>) {
    match value {
        Value::Object(map) => {
            into.extend(map.get("$ref").cloned());
            map.values().for_each(|value| collect_references(value, into));
        }
        Value::Array(items) => items.iter().for_each(|value| collect_references(value, into)),
        _ => (),
    }
}

#[test]
fn defaults_lie_within_their_own_bounds() {
    for mode in spec::modes() {
        for field in mode.fields().chain(mode.preview.needs) {
            let Some(default) = field.default.value().filter(|value| !value.is_null()) else { continue };
            let fine = match field.kind {
                Kind::Int { min, max } => {
                    let n = default.as_i64().unwrap();
                    (min..=max).contains(&n) && field.modulus.is_none_or(|modulus| modulus.holds(n))
                }
                Kind::Number { min, max } => (min..=max).contains(&default.as_f64().unwrap()),
                Kind::IntChoice(choices) => choices.contains(&default.as_i64().unwrap()),
                Kind::TextChoice(choices) => choices.contains(&default.as_str().unwrap()),
                Kind::Bool => default.is_boolean(),
                Kind::Text | Kind::Url => default.is_string(),
                Kind::Items | Kind::TimeRanges | Kind::Point => default == json!([]),
            };
            assert!(fine, "{} {} {default}", mode.path, field.name);
        }
    }
}
