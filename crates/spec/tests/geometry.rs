//! Sizes, windows and targets, against the numbers of the model's own packages.

use kiln_spec as spec;
use spec::geometry::{self, Rect, Size};
use spec::{Targets, layout};

#[test]
fn frames_and_latents_go_back_and_forth() {
    assert_eq!([0, 1, 8, 9, 16, 17, 89, 121].map(geometry::latent_frames), [0, 1, 1, 2, 2, 3, 12, 16]);
    for latents in 0..20 {
        assert_eq!(geometry::latent_frames(geometry::pixel_frames(latents)), latents);
    }
    assert_eq!([97, 49].map(|frames| geometry::reference_frames(frames, 2)), [49, 25]);
    assert_eq!(geometry::reference_frames(89, 1), 89);
    assert_eq!(geometry::middle_frame(89), 44);
}

#[test]
fn generated_sound_has_25_latents_a_second_and_encoded_sound_often_one_more() {
    // frames at 24 a second: generated, encoded
    for (frames, generated, encoded) in [(89, 93, 93), (97, 101, 102), (121, 126, 127)] {
        let seconds = geometry::seconds(frames, 24);
        assert_eq!(geometry::audio_latents(seconds), generated);
        assert_eq!(geometry::encoded_audio_latents((seconds * 16_000.0) as u64), encoded);
    }
    for (seconds, generated, encoded) in [(1_u32, 25, 26), (2, 50, 51), (5, 125, 126), (10, 250, 251)] {
        assert_eq!(geometry::audio_latents(f64::from(seconds)), generated);
        assert_eq!(geometry::encoded_audio_latents(u64::from(seconds) * 16_000), encoded);
    }
    // half to even: 0.5 s are 12.5 latents, 0.7 s are 17.5
    assert_eq!([geometry::audio_latents(0.5), geometry::audio_latents(0.7)], [12, 18]);
}

#[test]
fn an_audio_window_leaves_something_clean_and_something_to_generate() {
    assert_eq!(geometry::audio_window(1.0, 125), 25);
    assert_eq!(geometry::audio_window(0.001, 125), 1);
    assert_eq!(geometry::audio_window(30.0, 125), 124);
    assert_eq!([0, 1, 2].map(|total| geometry::audio_window(1.0, total)), [0, 0, 1]);
    // the sound of 9 and of 8 frames at 24 a second
    assert_eq!([9, 8].map(|frames| geometry::audio_window(geometry::seconds(frames, 24), 93)), [9, 8]);
}

#[test]
fn a_rescaled_rectangle_is_never_empty_and_never_the_whole_frame() {
    for (_, _, from) in geometry::BUCKETS {
        for (_, _, to) in geometry::BUCKETS {
            let (columns, rows) = (from.width_px / 32, from.height_px / 32);
            for (x1, x2) in (0..columns).flat_map(|a| (a + 1..=columns).map(move |b| (a, b))) {
                let (y1, y2) = (x1 % rows, rows);
                let rect = Rect { x1: x1 * 32, y1: y1 * 32, x2: x2 * 32, y2: y2 * 32 };
                if rect.covers(from) {
                    continue;
                }
                let scaled = rect.rescaled(from, to);
                assert!(!scaled.is_empty() && !scaled.covers(to), "{rect:?} {from:?} {to:?} {scaled:?}");
                assert_eq!(scaled, scaled.snapped());
                assert!(scaled.x2 <= to.width_px && scaled.y2 <= to.height_px);
                if from == to {
                    assert_eq!(scaled, rect);
                }
            }
        }
    }
    let (medium, high) = (Size { width_px: 768, height_px: 768 }, Size { width_px: 960, height_px: 960 });
    let rect = Rect { x1: 192, y1: 0, x2: 576, y2: 768 };
    assert_eq!(rect.rescaled(medium, high), Rect { x1: 256, y1: 0, x2: 736, y2: 960 });
}

#[test]
fn targets_match_whole_names_from_the_right() {
    let block = |module: &str| format!("transformer_blocks.3.{module}");
    let hits = |targets: Targets| {
        [
            "attn1.to_q",
            "attn2.to_out.0",
            "audio_attn1.to_k",
            "audio_attn2.to_v",
            "audio_to_video_attn.to_q",
            "video_to_audio_attn.to_out.0",
            "ff.net.0.proj",
            "ff.net.2",
            "audio_ff.net.0.proj",
            "audio_ff.net.2",
            "attn1.to_gate_logits",
            "attn1.q_norm",
        ]
        .map(|module| u8::from(targets.matches(&block(module))))
    };
    assert_eq!(hits(Targets::AllAttention), [1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(hits(Targets::VideoAttention), [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(hits(Targets::VideoAttentionFf), [1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0]);
    assert_eq!(hits(Targets::AudioAttentionFf), [0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0]);
    assert_eq!(hits(Targets::AudioAttentionFfV2a), [0, 0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 0]);
    // linears per block times 48 blocks, as the reference trainer counts them
    let modules: Vec<String> =
        ["attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn"]
            .iter()
            .flat_map(|attention| {
                ["to_q", "to_k", "to_v", "to_out.0"].map(|linear| format!("{attention}.{linear}"))
            })
            .chain(["ff.net.0.proj", "ff.net.2", "audio_ff.net.0.proj", "audio_ff.net.2"].map(str::to_owned))
            .collect();
    let linears =
        Targets::ALL.map(|targets| 48 * modules.iter().filter(|module| targets.matches(module)).count());
    assert_eq!(linears, [1152, 384, 480, 480, 672]);
}

#[test]
fn layouts_tell_files_apart_by_extension_in_any_case() {
    assert_eq!(layout::media_of("MP4"), Some(layout::Media::Video));
    assert_eq!(layout::media_of(".WebP"), Some(layout::Media::Image));
    assert_eq!(layout::media_of("m4a"), Some(layout::Media::Audio));
    assert_eq!(layout::media_of(""), None);
    assert_eq!(layout::media_of("."), None);
    assert_eq!(layout::media_of("exe"), None);
    for mode in spec::modes() {
        // the part that is trained on, and suffixes that tell all members apart
        mode.layout.target();
        let mut suffixes: Vec<&str> = mode.layout.members.iter().map(|member| member.suffix).collect();
        suffixes.sort_unstable();
        suffixes.dedup();
        assert_eq!(suffixes.len(), mode.layout.members.len(), "{}", mode.path);
        assert_eq!(mode.layout.takes_images(), matches!(mode.path, "t2v" | "i2v"));
    }
}
