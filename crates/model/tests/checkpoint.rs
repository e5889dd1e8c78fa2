//! Opening weight files: good ones, shards, and hostile ones.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::{fs, path::Path};

use candle_core::{DType, Device};
use half::bf16;
use kiln_model::{Checkpoint, Component, Error, Weights};
use tempfile::TempDir;

/// A file with this header text and this many bytes of data.
fn file(folder: &Path, name: &str, header: &str, data: &[u8]) -> std::path::PathBuf {
    let path = folder.join(name);
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    fs::write(&path, bytes).unwrap();
    path
}

fn open_error(header: &str, data: &[u8]) -> String {
    let folder = TempDir::new().unwrap();
    let path = file(folder.path(), "hostile.safetensors", header, data);
    let error = Checkpoint::open(&path).expect_err("the file must be refused");
    assert!(matches!(error, Error::Format { .. }), "{error:?}");
    error.to_string()
}

#[test]
fn hostile_headers_are_refused_with_a_reason() {
    let cases: &[(&str, usize, &str)] = &[
        ("", 0, "unreadable header"),
        ("[]", 0, "unreadable header"),
        ("{\"a\":{}}", 0, "unreadable header"),
        ("{\"a\":", 0, "unreadable header"),
        ("{\"__metadata__\":{\"config\":3}}", 0, "unreadable header"),
        ("{\"__metadata__\":{},\"__metadata__\":{}}", 0, "given twice"),
        (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}"#, 8, "does not take the 8 bytes"),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 4, "outside the 4 bytes"),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8, "outside the 8 bytes"),
        (r#"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#, 8, "unreadable header"),
        (r#"{"a":{"dtype":"F32","shape":[1e3],"data_offsets":[0,8]}}"#, 8, "unreadable header"),
        (r#"{"a":{"dtype":"X9","shape":[2],"data_offsets":[0,8]}}"#, 8, "unknown dtype"),
        (r#"{"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}"#, 1, "9 axes"),
        (
            r#"{"a":{"dtype":"U8","shape":[18446744073709551615,2],"data_offsets":[0,8]}}"#,
            8,
            "does not take the 8 bytes",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}"#,
            6,
            "overlaps",
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#,
            3,
            "belong to no tensor",
        ),
        (r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 2, "at the end"),
        (
            r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
            1,
            "tensor `a` is given twice",
        ),
    ];
    for (header, data, reason) in cases {
        let message = open_error(header, &vec![0; *data]);
        assert!(message.contains(reason), "{header}\n  gave {message:?}, expected {reason:?}");
    }
}

#[test]
fn deep_json_and_false_lengths_are_refused_without_asking_for_memory() {
    let deep = format!("{{\"a\":{}", "[".repeat(200_000));
    assert!(open_error(&deep, &[]).contains("unreadable header"));

    let folder = TempDir::new().unwrap();
    for (name, bytes) in [
        ("empty", vec![]),
        ("short", vec![1, 2, 3]),
        ("endless", u64::MAX.to_le_bytes().to_vec()),
        ("beyond", [99u64.to_le_bytes().as_slice(), b"{}"].concat()),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = Checkpoint::open(&path).unwrap_err();
        assert!(matches!(error, Error::Format { .. }), "{name}: {error}");
    }
}

#[test]
fn what_is_no_file_is_refused_without_waiting() {
    let folder = TempDir::new().unwrap();
    let socket = folder.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for path in [Path::new("/dev/null"), &socket] {
        let error = Checkpoint::open(path).unwrap_err();
        assert!(error.to_string().contains("neither a file nor a folder"), "{error}");
    }
    assert!(matches!(Checkpoint::open(folder.path().join("nothing")), Err(Error::Io { .. })));
    assert!(Checkpoint::open(folder.path()).unwrap_err().to_string().contains("no *.safetensors"));
}

#[test]
fn every_cut_of_a_good_file_is_refused() {
    let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let folder = TempDir::new().unwrap();
    let whole = fs::read(file(folder.path(), "whole", header, &[0; 8])).unwrap();
    assert!(Checkpoint::open(folder.path().join("whole")).is_ok());
    for cut in 0..whole.len() {
        let path = folder.path().join("cut");
        fs::write(&path, &whole[..cut]).unwrap();
        assert!(Checkpoint::open(&path).is_err(), "{cut} of {} bytes were accepted", whole.len());
    }
}

#[test]
fn a_header_with_any_byte_changed_opens_or_is_refused() {
    let header = r#"{"__metadata__":{"config":"{}"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[1,2],"data_offsets":[8,12]}}"#;
    let folder = TempDir::new().unwrap();
    let path = file(folder.path(), "x", header, &[0; 12]);
    let whole = fs::read(&path).unwrap();
    let (mut opened, mut refused) = (0, 0);
    for place in 0..whole.len() - 12 {
        for byte in [0, b'"', b'{', b'9', b'-', 0xff] {
            let mut changed = whole.clone();
            changed[place] = byte;
            fs::write(&path, &changed).unwrap();
            match Checkpoint::open(&path) {
                Ok(file) => {
                    opened += 1;
                    for (name, _) in file.entries() {
                        // What opens can be read, whatever it is called now.
                        file.tensor(name, &Device::Cpu).unwrap();
                    }
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(opened > 20 && refused > 500, "{opened} opened, {refused} refused");
}

#[test]
fn values_are_read_in_the_type_that_is_asked_for_at_any_alignment() {
    let folder = TempDir::new().unwrap();
    // One byte before the others puts them at odd offsets.
    let header = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
        "h":{"dtype":"BF16","shape":[2],"data_offsets":[1,5]},
        "f":{"dtype":"F32","shape":[],"data_offsets":[5,9]},
        "g":{"dtype":"F16","shape":[1],"data_offsets":[9,11]},
        "e":{"dtype":"F32","shape":[0,3],"data_offsets":[11,11]}}"#;
    let mut data = vec![7u8];
    data.extend([1.5f32, -2.0].iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()));
    data.extend(0.1f32.to_le_bytes());
    data.extend(half::f16::from_f32(0.333).to_le_bytes());
    let opened = Checkpoint::open(file(folder.path(), "x", header, &data)).unwrap();
    let get = |name: &str| opened.tensor(name, &Device::Cpu).unwrap();
    assert_eq!(get("a").to_vec1::<u8>().unwrap(), [7]);
    assert_eq!(get("h").to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap(), [1.5, -2.0]);
    assert_eq!(get("f").to_scalar::<f32>().unwrap(), 0.1);
    assert_eq!(get("g").to_vec1::<f32>().unwrap(), [half::f16::from_f32(0.333).to_f32()]);
    assert_eq!(get("e").dims(), [0, 3]);
    assert!(opened.tensor("nothing", &Device::Cpu).unwrap_err().to_string().contains("`nothing`"));
}

/// Builds what the next tests ask for: a matrix and its bias below `conv_in`.
fn build(w: &Weights) -> kiln_model::Result<(candle_core::Tensor, candle_core::Tensor)> {
    let at = w.pp("conv_in");
    Ok((at.stored("weight", (2, 2))?, at.tensor("bias", 2)?))
}

#[test]
fn all_that_does_not_fit_is_one_error() {
    let header = r#"{"vae.encoder.conv_in.weight":{"dtype":"U8","shape":[2,2],"data_offsets":[0,4]},
        "vae.encoder.conv_in.more":{"dtype":"U8","shape":[1],"data_offsets":[4,5]},
        "vae.decoder.other":{"dtype":"U8","shape":[1],"data_offsets":[5,6]}}"#;
    let folder = TempDir::new().unwrap();
    let opened = Checkpoint::open(file(folder.path(), "x", header, &[0; 6])).unwrap();
    let error = opened.load(Component::VideoEncoder, &Device::Cpu, DType::F32, build).unwrap_err();
    let Error::Tensors(problems) = &error else { panic!("{error}") };
    assert_eq!(problems.missing, ["vae.encoder.conv_in.bias"]);
    assert_eq!(problems.surplus, ["vae.encoder.conv_in.more"]);
    assert_eq!(problems.unusable, [("vae.encoder.conv_in.weight".to_owned(), "U8".to_owned())]);

    let header = r#"{"vae.encoder.conv_in.weight":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},
        "vae.encoder.conv_in.bias":{"dtype":"F32","shape":[2],"data_offsets":[16,24]}}"#;
    let opened = Checkpoint::open(file(folder.path(), "y", header, &[0; 24])).unwrap();
    let error = opened.load(Component::VideoEncoder, &Device::Cpu, DType::F32, build).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("vae.encoder.conv_in.weight: expected [2, 2], found [4]"), "{message}");
}

#[test]
fn fp8_weights_are_dequantised_and_need_their_scale() {
    let weight = r#""vae.encoder.conv_in.weight":{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[0,4]},
        "vae.encoder.conv_in.bias":{"dtype":"BF16","shape":[2],"data_offsets":[4,8]}"#;
    let mut data = vec![0x38, 0xb8, 0x40, 0x01, 0, 0, 0, 0];
    let folder = TempDir::new().unwrap();
    let opened = Checkpoint::open(file(folder.path(), "x", &format!("{{{weight}}}"), &data)).unwrap();
    let error = opened.load(Component::VideoEncoder, &Device::Cpu, DType::F32, build).unwrap_err();
    assert!(error.to_string().contains("missing vae.encoder.conv_in.weight_scale"), "{error}");

    data.extend(0.5f32.to_le_bytes());
    data.extend(9f32.to_le_bytes());
    let header = format!(
        r#"{{{weight},"vae.encoder.conv_in.weight_scale":{{"dtype":"F32","shape":[],"data_offsets":[8,12]}},
        "vae.encoder.conv_in.input_scale":{{"dtype":"F32","shape":[],"data_offsets":[12,16]}}}}"#
    );
    let opened = Checkpoint::open(file(folder.path(), "y", &header, &data)).unwrap();
    let (weight, _) = opened.load(Component::VideoEncoder, &Device::Cpu, DType::F32, build).unwrap();
    assert_eq!(weight.dtype(), DType::BF16);
    let values = weight.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(values, [0.5, -0.5, 1.0, 0.5 * 0.001953125]);
}

#[test]
fn shards_are_one_checkpoint_and_their_index_is_checked() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let one = |name: &str| format!(r#"{{"{name}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#);
    file(at, "a.safetensors", &one("model.embed_tokens.weight"), &[1]);
    file(at, "b.safetensors", &one("model.norm.weight"), &[2]);
    let opened = Checkpoint::open(at).unwrap();
    assert_eq!(opened.entries().len(), 2);
    assert_eq!(opened.component_of("model.norm.weight"), Some(Component::Gemma));
    assert!(opened.config().unwrap_err().to_string().contains("config"));
    fs::write(at.join("config.json"), r#"{"text_config":{"hidden_size":4}}"#).unwrap();
    assert!(Checkpoint::open(at).unwrap().config().unwrap().get("text_config").is_some());

    let index = at.join("model.safetensors.index.json");
    for (text, reason) in [
        (r#"{"weight_map":{"model.norm.weight":"../b.safetensors"}}"#, "not a plain file name"),
        (r#"{"weight_map":{"model.norm.weight":"a.safetensors"}}"#, "the folder's index names this file"),
        (r#"{"weight_map":[]}"#, "no `weight_map`"),
        ("{", "not JSON"),
    ] {
        fs::write(&index, text).unwrap();
        let message = Checkpoint::open(at).unwrap_err().to_string();
        assert!(message.contains(reason), "{text}: {message}");
    }
    fs::write(&index, r#"{"weight_map":{"model.norm.weight":"b.safetensors"}}"#).unwrap();
    assert_eq!(Checkpoint::open(at).unwrap().entries().len(), 1);

    fs::remove_file(&index).unwrap();
    file(at, "c.safetensors", &one("model.norm.weight"), &[2]);
    assert!(Checkpoint::open(at).unwrap_err().to_string().contains("is also in"));
}

#[test]
fn repacked_transformers_without_their_prefix_are_found() {
    let folder = TempDir::new().unwrap();
    let header = r#"{"patchify_proj.weight":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
        "video_embeddings_connector.x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},
        "vae.encoder.y":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#;
    let opened = Checkpoint::open(file(folder.path(), "x", header, &[0; 3])).unwrap();
    let names: Vec<_> = opened.tensors_of(Component::Transformer).map(|(name, _)| name).collect();
    assert_eq!(names, ["patchify_proj.weight"]);
    assert_eq!(opened.component_of("video_embeddings_connector.x"), Some(Component::VideoConnector));
    assert_eq!(opened.component_of("vae.encoder.y"), Some(Component::VideoEncoder));
}

#[test]
fn random_weights_depend_on_seed_and_name_alone() {
    let w = |seed| Weights::random(Component::VideoEncoder, seed, &Device::Cpu, DType::F32);
    let values = |w: &Weights, name: &str| w.tensor(name, 4).unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(values(&w(1), "a"), values(&w(1), "a"));
    assert_ne!(values(&w(1), "a"), values(&w(2), "a"));
    assert_ne!(values(&w(1), "a"), values(&w(1), "b"));
}
