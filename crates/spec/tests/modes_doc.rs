//! `docs/MODES.md` is written from the mode table. After a change of the table:
//!
//! ```text
//! KILN_UPDATE=1 cargo nextest run -p kiln-spec --test modes_doc
//! ```

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use kiln_spec as spec;
use spec::condition::{Chance, Condition, Window};
use spec::field::{Kind, NEGATIVE_PROMPT};
use spec::layout::{Caption, MinLength, Names, Needed, RECOMMENDED_ITEMS, Sound};
use spec::{Field, Mode, Role, Targets, geometry};
use std::fmt::Write;

#[test]
fn the_modes_page_matches_the_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/MODES.md");
    let page = page();
    #[expect(clippy::disallowed_methods, reason = "a switch for the one who runs the test")]
    if std::env::var("KILN_UPDATE").is_ok() {
        std::fs::write(path, &page).unwrap();
    }
    let on_disk = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        on_disk == page,
        "docs/MODES.md is not what the table says; run: KILN_UPDATE=1 cargo nextest run -p kiln-spec --test modes_doc"
    );
}

fn page() -> String {
    let mut out = String::from(
        "# The modes\n\nWritten from the table in `crates/spec` by its test `modes_doc`; do not edit by hand.\n\n",
    );
    overview(&mut out);
    common(&mut out);
    for mode in spec::modes().iter().filter(|mode| mode.twin_of.is_none()) {
        section(&mut out, mode);
    }
    out
}

fn overview(out: &mut String) {
    out.push_str(
        "| path | title | video | audio | adapters | archive | preview |\n|---|---|---|---|---|---|---|\n",
    );
    for mode in spec::modes() {
        let row = [
            format!("`{}`", mode.path),
            mode.title.to_owned(),
            role(mode.video),
            role(mode.audio),
            mode.targets.as_str().to_owned(),
            mode.layout.name.to_owned(),
            format!("`{}`", mode.preview.output.as_str()),
        ];
        writeln!(out, "| {} |", row.join(" | ")).unwrap();
    }
    out.push_str("\nRequests go to `");
    writeln!(
        out,
        "{}/{}/<path>`. An `ic-lora/` path behaves like the path it is named after.",
        spec::OWNER,
        spec::ALIAS
    )
    .unwrap();
    out.push_str("\n## Adapters\n\n| set | modules of every transformer block |\n|---|---|\n");
    for targets in Targets::ALL {
        writeln!(out, "| {} | `{}` |", targets.as_str(), targets.patterns().join("` `")).unwrap();
    }
    out.push_str("\n## Sizes\n\n| resolution | aspect ratio | width × height | tokens of 89 frames |\n|---|---|---|---|\n");
    for (resolution, shape, size) in geometry::BUCKETS {
        let (width, height, tokens) = (size.width_px, size.height_px, size.latents(89).tokens());
        writeln!(out, "| {} | {} | {width} × {height} | {tokens} |", resolution.as_str(), shape.as_str())
            .unwrap();
    }
    let pairs = |sizes: &[u32]| sizes.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    out.push_str("\nReference factors that fit a size: ");
    let fits: Vec<String> = geometry::BUCKETS
        .iter()
        .map(|(resolution, shape, size)| {
            format!(
                "{} {}: {}",
                resolution.as_str(),
                shape.as_str(),
                pairs(&geometry::spatial_factors(&[*size], 8))
            )
        })
        .collect();
    writeln!(out, "{}.", fits.join("; ")).unwrap();
    out.push_str("\nTemporal reference factors that fit a number of frames: ");
    let fits: Vec<String> = (9..=121)
        .step_by(8)
        .map(|frames| format!("{frames}: {}", pairs(&geometry::temporal_factors(&[frames], 8))))
        .collect();
    writeln!(out, "{}.", fits.join("; ")).unwrap();
}

/// Fields that stand in every mode with the same row.
fn shared(field: &Field) -> bool {
    spec::modes().iter().all(|mode| mode.field(field.name).is_some())
}

fn common(out: &mut String) {
    out.push_str("\n## Fields of every mode\n\nWhere a mode has another default or meaning, its section says so. Null counts as not given; unknown fields are ignored.\n\n");
    let mode = spec::find("t2v").unwrap();
    fields(out, mode.fields().filter(|field| shared(field)));
    let item = "\n`validation` is a list of objects; what they hold is in the section of each mode. Addresses (`…_url`) are http(s) addresses or data URIs.\n";
    out.push_str(item);
}

fn fields<'f>(out: &mut String, fields: impl Iterator<Item = &'f Field>) {
    out.push_str("| field | holds | default | meaning |\n|---|---|---|---|\n");
    for field in fields {
        let default = match field.default.value() {
            None => "**required**".to_owned(),
            Some(value) if value == NEGATIVE_PROMPT => "a long list of faults, see `field.rs`".to_owned(),
            Some(value) => format!("`{value}`"),
        };
        writeln!(out, "| `{}` | {} | {default} | {} |", field.name, holds(field), field.text).unwrap();
    }
}

fn holds(field: &Field) -> String {
    let range = match field.kind {
        Kind::Text => "text".to_owned(),
        Kind::Url => "address".to_owned(),
        Kind::Bool if field.nullable() => "true, false or null".to_owned(),
        Kind::Bool => "true or false".to_owned(),
        Kind::Int { min, max } => format!("whole number, {min} to {max}"),
        Kind::Number { min, max } => format!("number, {min} to {max}"),
        Kind::IntChoice(choices) => choices.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", "),
        Kind::TextChoice(choices) => format!("`{}`", choices.join("`, `")),
        Kind::Point => "`[x, y]`, whole numbers".to_owned(),
        Kind::TimeRanges => "list of `[start, end]`".to_owned(),
        Kind::Items => "list".to_owned(),
    };
    match field.modulus {
        Some(modulus) if modulus.remainder == 0 => format!("{range}, a multiple of {}", modulus.divisor),
        Some(modulus) => {
            format!("{range}, {} more than a multiple of {}", modulus.remainder, modulus.divisor)
        }
        None => range,
    }
}

fn role(role: Role) -> String {
    let conditions: Vec<String> = role.conditions().iter().map(|c| condition(*c)).collect();
    match conditions.as_slice() {
        [] => role.as_str().to_owned(),
        some => format!("{}: {}", role.as_str(), some.join(", ")),
    }
}

fn condition(condition: Condition) -> String {
    let name = condition.name();
    match condition {
        Condition::FirstFrame(Chance::FirstFrameP) => format!("{name} (p = `first_frame_conditioning_p`)"),
        Condition::Prefix(Window::Frames) | Condition::Suffix(Window::Frames) => {
            format!("{name} (`conditioning_frames`)")
        }
        Condition::Prefix(Window::Seconds) | Condition::Suffix(Window::Seconds) => {
            format!("{name} (`conditioning_seconds`)")
        }
        _ => name.to_owned(),
    }
}

fn section(out: &mut String, mode: &Mode) {
    write!(out, "\n## {}: `{}`", mode.title, mode.path).unwrap();
    if let Some(twin) = mode.twin {
        write!(out, " and `{}`", twin.path).unwrap();
    }
    writeln!(out, "\n\nVideo {}. Audio {}.\n", role(mode.video), role(mode.audio)).unwrap();
    archive(out, mode);
    let base = spec::find("t2v").unwrap();
    let own: Vec<&Field> =
        mode.fields().filter(|field| !shared(field) || base.field(field.name) != Some(field)).collect();
    if !own.is_empty() {
        out.push_str("\nFields of its own, or unlike the common ones:\n\n");
        fields(out, own.into_iter());
    }
    writeln!(out, "\nA validation item (`{}`):\n", mode.preview.item).unwrap();
    fields(out, mode.preview.needs.iter());
    let common = base.rules();
    let rules: Vec<_> = mode.rules().into_iter().filter(|rule| !common.contains(rule)).collect();
    if !rules.is_empty() {
        out.push_str("\nRules:\n\n");
        for rule in rules {
            writeln!(out, "- {}.", rule.text()).unwrap();
        }
    }
}

fn archive(out: &mut String, mode: &Mode) {
    let layout = &mode.layout;
    out.push_str("| file of the archive | what | extensions |\n|---|---|---|\n");
    for member in layout.members {
        let what: Vec<&str> =
            [member.part.as_str(), member.note].into_iter().filter(|s| !s.is_empty()).collect();
        let needed = match member.needed {
            Needed::Always => "",
            Needed::UnlessStartHasTrack => "; may be left out when the start video has sound",
        };
        let name = format!("<name>{}.<ext>", member.suffix);
        writeln!(out, "| `{name}` | {}{needed} | `{}` |", what.join(": "), member.extensions().join("` `"))
            .unwrap();
    }
    let caption = match layout.caption {
        Caption::Optional => "caption; may be left out",
        Caption::UnlessTrigger => "caption; needed unless there is a `trigger_phrase`",
    };
    writeln!(out, "| `<name>.txt` | {caption} | `.txt` |\n").unwrap();
    let names = match layout.names {
        Names::PerFolder => "Same names in different folders are different items.",
        Names::Unique => "Names must be unique across the archive.",
    };
    let sound = match layout.sound {
        Sound::Ignored => "Sound is not looked at.",
        Sound::Decides => "Sound is trained when every clip has it, unless `with_audio` decides.",
        Sound::WhenAsked => "With `with_audio`, every clip must have sound.",
        Sound::OnEveryClip => "Every clip must have sound.",
        Sound::FromGroup => "Every group must have a source of sound.",
        Sound::Itself => "The clips are sound.",
    };
    let short = match layout.min_length {
        MinLength::Frames => {
            "Items of fewer than `number_of_frames` frames are skipped, unless `auto_scale_input` is set."
        }
        MinLength::Seconds => "Items shorter than `audio_duration_seconds` are skipped.",
    };
    writeln!(out, "{names} {sound} {short} {RECOMMENDED_ITEMS} items or more are best.").unwrap();
}
