//! `kiln model` as a person meets it.

use anyhow::{Result, ensure};
use serde_json::Value;
use std::{path::Path, process::Command};

/// Standard output, standard error and exit status of `kiln model …`.
fn kiln(arguments: &[&str]) -> Result<(String, String, Option<i32>)> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    let output = command.arg("model").args(arguments).env_clear().env("PATH", "/usr/bin:/bin").output()?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok((text(output.stdout), text(output.stderr), output.status.code()))
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| anyhow::anyhow!("the temporary folder's name is not text"))
}

#[test]
fn a_tiny_model_of_chosen_sizes_is_made_and_fits() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("tiny");
    let sizes = ["--size", "layers=1", "--size", "gemma_width=48", "--size", "audio_channels=4"];
    let (text, error, status) =
        kiln(&[&["init-tiny", "--out", path(&out)?, "--seed", "5"], &sizes[..]].concat())?;
    ensure!(status == Some(0), "{text}{error}");
    let checkpoint = out.join("ltx-2.3-tiny.safetensors");

    let (text, _, status) = kiln(&["inspect", path(&checkpoint)?])?;
    ensure!(status == Some(0), "{text}");
    for line in ["model    LTX-2.3", "version  2.3.0", "video encoder", "everything here fits"] {
        assert!(text.contains(line), "no `{line}` in\n{text}");
    }
    let (text, _, _) = kiln(&["inspect", path(&checkpoint)?, "--tensors"])?;
    assert!(text.contains("vae.per_channel_statistics.mean-of-means"), "{text}");
    let (text, _, _) = kiln(&["inspect", path(&out.join("gemma"))?, "--format", "json"])?;
    let found: Value = serde_json::from_str(&text)?;
    assert_eq!(found["model"], "Gemma 3 text");
    assert_eq!(found["problems"], Value::Array(Vec::new()));

    let (_, error, status) = kiln(&["init-tiny", "--out", path(&out)?])?;
    assert_eq!(status, Some(1));
    assert!(error.contains("already exists"), "{error}");
    Ok(())
}

#[test]
fn a_file_that_does_not_fit_gives_status_1_and_its_reason() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("tiny");
    kiln(&["init-tiny", "--out", path(&out)?, "--size", "layers=1"])?;
    let file = out.join("gemma").join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    config["text_config"]["intermediate_size"] = 65.into();
    std::fs::write(&file, config.to_string())?;
    let (text, _, status) = kiln(&["inspect", path(&out.join("gemma"))?])?;
    assert_eq!(status, Some(1));
    assert!(text.contains("misshaped language_model.model.layers.0.mlp.down_proj.weight"), "{text}");

    let (_, error, status) = kiln(&["inspect", path(&out.join("nothing"))?])?;
    assert_eq!(status, Some(1));
    assert!(error.contains("nothing"), "{error}");
    Ok(())
}

#[test]
fn a_wrong_size_is_refused_with_the_names_there_are() -> Result<()> {
    let (text, _, status) = kiln(&["init-tiny", "--sizes-only", "--size", "layers=9"])?;
    assert_eq!(status, Some(0));
    assert!(text.lines().any(|line| line.split_whitespace().eq(["layers", "9"])), "{text}");
    for (size, words) in [
        ("wings=2", "there are layers, heads"),
        ("layers", "expected NAME=N"),
        ("layers=many", "expected a whole number"),
    ] {
        let (_, error, status) = kiln(&["init-tiny", "--sizes-only", "--size", size])?;
        assert_eq!(status, Some(1), "{size}");
        assert!(error.contains(words), "{size}: {error}");
    }
    Ok(())
}
