//! Request bodies, for all 23 modes. The first byte chooses the mode, the rest is the body.
#![no_main]

use serde_json::Value;
use spec::{Failure, Mode, Problems, TrainSpec};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&chooser, body)) = data.split_first() else { return };
    let modes = spec::modes();
    let mode = &modes[usize::from(chooser) % modes.len()];
    match spec::parse_body(mode, Some(body)) {
        Ok(spec) => accepted(mode, body, &spec),
        Err(problems) => refused(&problems),
    }
});

/// What the job row keeps is what the request said, and everything that is derived from it can be derived.
fn accepted(mode: &Mode, body: &[u8], spec: &TrainSpec) {
    assert_eq!(spec.mode.path, mode.path);
    let kept = serde_json::to_string(spec).expect("an accepted request is JSON");
    let read: TrainSpec = serde_json::from_str(&kept).expect("the row's JSON reads back");
    assert_eq!(&read, spec, "the row's JSON reads back as the same request");
    // The server parses the value that it keeps as the input.
    let input = spec::read_json(body).expect("an accepted body is JSON");
    assert_eq!(spec::parse(spec.mode, &input).as_ref(), Ok(spec));
    let text = serde_json::to_string(&input).expect("JSON");
    assert_eq!(serde_json::from_str::<Value>(&text).expect("the kept input reads back"), input);
    assert_eq!(
        spec::parse_body(spec.mode, Some(text.as_bytes())).as_ref(),
        Ok(spec),
        "the kept input means the same request"
    );
    let (size, preview) = (spec.size(), spec.validation_size());
    assert!(size.width_px > 0 && size.height_px > 0 && preview.width_px > 0 && preview.height_px > 0);
    let _ = spec.crop();
    for item in &spec.validation {
        for (_, address) in item.urls() {
            assert!(!address.is_empty());
        }
    }
}

/// A refusal says where and what, can be sent, and can be kept in a job row.
fn refused(problems: &Problems) {
    assert!(!problems.0.is_empty() && problems.0.len() <= 501);
    for problem in &problems.0 {
        assert!(!problem.msg.is_empty() && !problem.kind.is_empty());
    }
    let body = serde_json::to_string(&problems.to_body()).expect("problems are JSON");
    assert!(body.starts_with("{\"detail\":[{\"loc\":[\"body\""), "{body}");
    let failure = Failure::from(problems.clone());
    assert_eq!(failure.http_status(), 422);
    assert!(!failure.error_line().is_empty());
    let kept = serde_json::to_string(&failure).expect("a failure is JSON");
    let read: Failure = serde_json::from_str(&kept).expect("the row's JSON reads back");
    assert_eq!(read, failure, "the row's JSON reads back as the same failure");
    assert_eq!(read.body(), failure.body());
}
