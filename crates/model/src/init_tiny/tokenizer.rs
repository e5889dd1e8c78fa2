//! A tokenizer of Gemma's kind: byte-pair merges over characters, bytes for characters it does not know.

use serde_json::{Map, Value, json};

/// Stands for a space, as in Gemma's vocabulary.
const SPACE: char = '▁';

/// Merges that make frequent pieces of English captions one token; each piece's parts come before it.
const MERGES: [(&str, &str); 16] = [
    ("▁", "a"),
    ("▁", "t"),
    ("h", "e"),
    ("▁t", "he"),
    ("i", "n"),
    ("in", "g"),
    ("e", "r"),
    ("o", "n"),
    ("▁", "w"),
    ("▁", "s"),
    ("e", "d"),
    ("o", "u"),
    ("a", "t"),
    ("▁a", "n"),
    ("▁an", "d"),
    ("▁", "o"),
];

/// A tokenizer file and the number of its tokens.
pub(super) struct ByteFallbackBpe {
    pub(super) json: Value,
    pub(super) vocabulary: usize,
}

/// Builds the tokenizer: four special tokens, 256 bytes, printable ASCII and the space, the merged pieces.
pub(super) fn byte_fallback_bpe() -> ByteFallbackBpe {
    const SPECIAL: [&str; 4] = ["<pad>", "<eos>", "<bos>", "<unk>"];
    let bytes = (0..=255u8).map(|byte| format!("<0x{byte:02X}>"));
    let characters = ('!'..='~').chain([SPACE]).map(String::from);
    let pieces = MERGES.iter().map(|(a, b)| format!("{a}{b}"));
    let tokens = SPECIAL.into_iter().map(str::to_owned).chain(bytes).chain(characters).chain(pieces);
    let vocab: Map<String, Value> = tokens.enumerate().map(|(id, token)| (token, id.into())).collect();
    let vocabulary = vocab.len();
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true
            })
        })
        .collect();
    let bos = json!({"SpecialToken": {"id": "<bos>", "type_id": 0}});
    let part = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, part("A")],
            "pair": [bos, part("A"), bos, part("B")],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}}
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"}
            ]
        },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": "<unk>",
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": MERGES.iter().map(|(a, b)| json!([a, b])).collect::<Vec<_>>()
        }
    });
    ByteFallbackBpe { json, vocabulary }
}
