//! Failures on the wire: status, body, headers and words of `protocol.md` §7.

use kiln_spec as spec;
use serde_json::json;
use spec::{Failure, FalError, File, Outcome, Problem, RequestErrorKind, at};

#[test]
fn request_errors_have_fals_names_codes_and_advice() {
    let table = [
        ("request_timeout", 504, true),
        ("startup_timeout", 504, true),
        ("runner_scheduling_failure", 503, true),
        ("runner_connection_timeout", 503, true),
        ("runner_disconnected", 503, true),
        ("runner_connection_refused", 503, true),
        ("runner_connection_error", 503, true),
        ("runner_incomplete_response", 502, true),
        ("runner_server_error", 500, true),
        ("internal_error", 500, true),
        ("client_disconnected", 499, false),
        ("client_cancelled", 499, false),
        ("bad_request", 400, false),
    ];
    let ours = RequestErrorKind::ALL.map(|kind| (kind.as_str(), kind.http_status(), kind.retryable()));
    assert_eq!(ours, table);
    for kind in RequestErrorKind::ALL {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        let failure = Failure::request(kind, "why");
        assert_eq!(failure.body(), json!({ "detail": "why", "error_type": kind.as_str() }));
        assert_eq!(failure.error_type(), Some(kind.as_str()));
        assert_eq!(failure.error_line(), "why");
        assert_eq!(failure.headers()[0], ("x-fal-error-type", kind.as_str()));
        assert_eq!(
            serde_json::from_value::<Failure>(serde_json::to_value(&failure).unwrap()).unwrap(),
            failure
        );
    }
}

#[test]
fn a_missed_start_deadline_is_the_users_own_timeout() {
    let failure = Failure::start_deadline();
    assert_eq!((failure.http_status(), failure.error_type()), (504, Some("request_timeout")));
    assert!(failure.headers().contains(&("x-fal-request-timeout-type", "user")));
    assert!(
        !Failure::workers_lost(3).headers().iter().any(|(name, _)| *name == "x-fal-request-timeout-type")
    );
}

#[test]
fn cancelled_and_gone_are_499_and_nobodys_fault() {
    for (failure, kind) in
        [(Failure::cancelled(), "client_cancelled"), (Failure::disconnected(), "client_disconnected")]
    {
        assert_eq!((failure.http_status(), failure.error_type()), (499, Some(kind)));
        assert!(failure.is_cancelled() && !failure.retryable());
    }
    assert!(!Failure::workers_lost(1).is_cancelled());
    assert_eq!(
        Failure::workers_lost(3).error_line(),
        "The worker running this request went away 3 times; giving up"
    );
}

#[test]
fn the_users_fault_is_a_422_with_every_problem() {
    let mut problems = spec::Problems::default();
    problems.0.push(Problem::fal(
        &FalError::InvalidArchive { supported_extensions: vec![".zip".into()] },
        at("training_data_url"),
        "The archive is damaged",
    ));
    problems.0.push(Problem::value_error(at("validation"), "too dark", &json!([])));
    let failure = Failure::user(problems);
    assert_eq!(failure.http_status(), 422);
    assert_eq!(
        failure.body(),
        json!({ "detail": [
            { "loc": ["body", "training_data_url"], "msg": "The archive is damaged", "type": "invalid_archive",
              "url": "https://docs.fal.ai/errors/#invalid_archive", "ctx": { "supported_extensions": [".zip"] } },
            { "loc": ["body", "validation"], "msg": "Value error, too dark", "type": "value_error", "ctx": { "error": {} }, "input": [] },
        ] })
    );
    assert_eq!(
        failure.headers(),
        [("x-fal-retryable", "false"), ("x-fal-needs-retry", "0"), ("x-fal-billable-units", "0")]
    );
    assert_eq!(failure.error_type(), None);
    assert_eq!(failure.webhook_error(), "Invalid status code: 422");
    assert_eq!(failure.error_line(), "training_data_url: The archive is damaged (and 1 more)");
}

#[test]
fn our_own_fault_says_so_and_whether_to_try_again() {
    let broken = Failure::internal("Training stopped: the loss became NaN at step 17");
    assert_eq!((broken.http_status(), broken.retryable()), (500, false));
    assert_eq!(broken.body()["detail"][0]["type"], "internal_server_error");
    let late =
        Failure::fal(&FalError::GenerationTimeout, vec!["body".into()], "Training took longer than allowed");
    assert_eq!((late.http_status(), late.retryable()), (504, true));
    assert_eq!(late.headers()[..2], [("x-fal-retryable", "true"), ("x-fal-needs-retry", "1")]);
    assert_eq!(late.error_line(), "Training took longer than allowed");
    assert!(matches!(
        Failure::fal(&FalError::FileDownloadError, at("training_data_url"), "404"),
        Failure::User { .. }
    ));
}

#[test]
fn every_type_of_fals_own_carries_its_limits() {
    let formats = || vec![".mp4".to_owned()];
    let cases = [
        (FalError::InternalServerError, "internal_server_error", 500, json!(null)),
        (FalError::GenerationTimeout, "generation_timeout", 504, json!(null)),
        (FalError::DownstreamServiceError, "downstream_service_error", 500, json!(null)),
        (FalError::DownstreamServiceUnavailable, "downstream_service_unavailable", 500, json!(null)),
        (FalError::ContentPolicyViolation, "content_policy_violation", 422, json!(null)),
        (FalError::NoMediaGenerated, "no_media_generated", 422, json!(null)),
        (FalError::FaceDetectionError, "face_detection_error", 422, json!(null)),
        (FalError::ImageLoadError, "image_load_error", 422, json!(null)),
        (FalError::FeatureNotSupported, "feature_not_supported", 422, json!(null)),
        (FalError::FileDownloadError, "file_download_error", 422, json!(null)),
        (FalError::FileTooLarge { max_size: 5 }, "file_too_large", 422, json!({ "max_size": 5 })),
        (
            FalError::ImageTooSmall { min_height: 1, min_width: 2 },
            "image_too_small",
            422,
            json!({ "min_height": 1, "min_width": 2 }),
        ),
        (
            FalError::ImageTooLarge { max_height: 1, max_width: 2 },
            "image_too_large",
            422,
            json!({ "max_height": 1, "max_width": 2 }),
        ),
        (FalError::GreaterThan { gt: 1.5 }, "greater_than", 422, json!({ "gt": 1.5 })),
        (FalError::GreaterThanEqual { ge: 1.5 }, "greater_than_equal", 422, json!({ "ge": 1.5 })),
        (FalError::LessThan { lt: 1.5 }, "less_than", 422, json!({ "lt": 1.5 })),
        (FalError::LessThanEqual { le: 1.5 }, "less_than_equal", 422, json!({ "le": 1.5 })),
        (FalError::MultipleOf { multiple_of: 8.0 }, "multiple_of", 422, json!({ "multiple_of": 8.0 })),
        (FalError::SequenceTooShort { min_length: 1 }, "sequence_too_short", 422, json!({ "min_length": 1 })),
        (FalError::SequenceTooLong { max_length: 9 }, "sequence_too_long", 422, json!({ "max_length": 9 })),
        (
            FalError::OneOf { expected: vec![json!(1), json!("a")] },
            "one_of",
            422,
            json!({ "expected": [1, "a"] }),
        ),
        (
            FalError::InvalidArchive { supported_extensions: formats() },
            "invalid_archive",
            422,
            json!({ "supported_extensions": [".mp4"] }),
        ),
        (
            FalError::ArchiveFileCountBelowMinimum {
                min_count: 1,
                provided_count: 0,
                supported_extensions: formats(),
            },
            "archive_file_count_below_minimum",
            422,
            json!({ "min_count": 1, "provided_count": 0, "supported_extensions": [".mp4"] }),
        ),
        (
            FalError::ArchiveFileCountExceedsMaximum {
                max_count: 1,
                provided_count: 2,
                supported_extensions: formats(),
            },
            "archive_file_count_exceeds_maximum",
            422,
            json!({ "max_count": 1, "provided_count": 2, "supported_extensions": [".mp4"] }),
        ),
        (
            FalError::AudioDurationTooLong { max_duration: 1.0, provided_duration: 2.0 },
            "audio_duration_too_long",
            422,
            json!({ "max_duration": 1.0, "provided_duration": 2.0 }),
        ),
        (
            FalError::AudioDurationTooShort { min_duration: 2.0, provided_duration: 1.0 },
            "audio_duration_too_short",
            422,
            json!({ "min_duration": 2.0, "provided_duration": 1.0 }),
        ),
        (
            FalError::VideoDurationTooLong { max_duration: 1.0, provided_duration: 2.0 },
            "video_duration_too_long",
            422,
            json!({ "max_duration": 1.0, "provided_duration": 2.0 }),
        ),
        (
            FalError::VideoDurationTooShort { min_duration: 2.0, provided_duration: 1.0 },
            "video_duration_too_short",
            422,
            json!({ "min_duration": 2.0, "provided_duration": 1.0 }),
        ),
        (
            FalError::UnsupportedAudioFormat { supported_formats: formats() },
            "unsupported_audio_format",
            422,
            json!({ "supported_formats": [".mp4"] }),
        ),
        (
            FalError::UnsupportedImageFormat { supported_formats: formats() },
            "unsupported_image_format",
            422,
            json!({ "supported_formats": [".mp4"] }),
        ),
        (
            FalError::UnsupportedVideoFormat { supported_formats: formats() },
            "unsupported_video_format",
            422,
            json!({ "supported_formats": [".mp4"] }),
        ),
    ];
    for (error, kind, status, ctx) in cases {
        let problem = serde_json::to_value(Problem::fal(&error, at("training_data_url"), "why")).unwrap();
        assert_eq!(problem["type"], kind);
        assert_eq!(problem["url"], format!("https://docs.fal.ai/errors/#{kind}"));
        assert_eq!(problem["ctx"], ctx);
        assert_eq!(problem.get("ctx").is_some(), !ctx.is_null());
        assert_eq!(Failure::fal(&error, at("training_data_url"), "why").http_status(), status);
    }
}

#[test]
fn a_result_leaves_out_the_files_that_do_not_apply() {
    let file = |name: &str| File {
        url: format!("http://kiln/files/{name}"),
        content_type: Some("application/octet-stream".into()),
        file_name: Some(name.into()),
        file_size: Some(7),
    };
    let outcome = Outcome {
        video: None,
        audio: Some(file("a.wav")),
        lora_file: file("l.safetensors"),
        config_file: file("c.json"),
        debug_dataset: None,
    };
    let result = outcome.to_result();
    assert_eq!(result.as_object().unwrap().keys().collect::<Vec<_>>(), ["audio", "lora_file", "config_file"]);
    assert_eq!(
        result["audio"],
        json!({ "url": "http://kiln/files/a.wav", "content_type": "application/octet-stream", "file_name": "a.wav", "file_size": 7 })
    );
    assert_eq!(serde_json::from_value::<Outcome>(result).unwrap(), outcome);
    assert_eq!(
        outcome.files().map(|(name, _)| name).collect::<Vec<_>>(),
        ["audio", "lora_file", "config_file"]
    );
}
