//! Object storage on a folder: streaming, limits, ranges, and nothing left of what was broken off.

#![expect(clippy::unwrap_used, reason = "a test's helper fails the test")]

use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use kiln_objects::{ByteStream, Error, Key, Location, Objects, Options, Segment};
use uuid::Uuid;

fn folder(path: &Path) -> Objects {
    Objects::open(&Options { location: Location::Folder(path.to_owned()) }).unwrap()
}

async fn all(stream: ByteStream) -> Vec<u8> {
    stream.try_collect::<Vec<Bytes>>().await.unwrap().concat()
}

fn pattern(bytes: usize) -> Bytes {
    (0..bytes).map(|i| (i * 31 % 251) as u8).collect::<Vec<u8>>().into()
}

fn files(path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found
}

#[tokio::test]
async fn bytes_written_in_any_pieces_come_back_whole_and_in_ranges() {
    let dir = tempfile::tempdir().unwrap();
    let objects = folder(dir.path());
    let data = pattern(5_300_000);
    for (n, step) in [1_000, 1 << 20, 3_000_001, 6_000_000].into_iter().enumerate() {
        let key = Key::upload(Uuid::from_u128(n as u128));
        let mut writer = objects.writer(key.clone(), None);
        for piece in data.chunks(step) {
            writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        assert_eq!(writer.finish().await.unwrap().bytes, data.len() as u64);
        assert_eq!(objects.bytes(&key).await.unwrap(), data.len() as u64);
        assert!(all(objects.read(&key, None).await.unwrap()).await == data, "pieces of {step}");
        assert!(all(objects.read(&key, Some(999..3_000_000)).await.unwrap()).await == data[999..3_000_000]);
        assert_eq!(std::fs::read(objects.local_path(&key).unwrap()).unwrap().len(), data.len());
    }
}

#[tokio::test]
async fn an_empty_object_exists() {
    let dir = tempfile::tempdir().unwrap();
    let objects = folder(dir.path());
    let key = Key::upload(Uuid::nil());
    assert!(matches!(objects.read(&key, None).await, Err(Error::NotFound { .. })));
    objects.writer(key.clone(), Some(0)).finish().await.unwrap();
    assert_eq!(all(objects.read(&key, None).await.unwrap()).await, b"");
}

#[tokio::test]
async fn a_file_of_several_objects_reads_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let objects = folder(dir.path());
    let data = pattern(1000);
    let mut segments = Vec::new();
    for (n, piece) in [&data[..300], &data[300..301], &data[301..1000]].into_iter().enumerate() {
        let key = Key::part(Uuid::nil(), Uuid::from_u128(n as u128));
        objects.put(&key, Bytes::copy_from_slice(piece)).await.unwrap();
        segments.push(Segment { key, bytes: piece.len() as u64 });
    }
    for range in [0..1000, 0..1, 299..302, 300..301, 301..1000, 999..1000, 500..500] {
        let want = &data[range.start as usize..range.end as usize];
        assert_eq!(all(objects.read_segments(&segments, range.clone())).await, want, "{range:?}");
    }
}

#[tokio::test]
async fn a_writer_past_its_limit_or_dropped_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let objects = folder(dir.path());
    let key = Key::upload(Uuid::nil());
    let mut writer = objects.writer(key.clone(), Some(3 << 20));
    writer.write(pattern(3 << 20)).await.unwrap();
    assert!(matches!(writer.write(pattern(1)).await, Err(Error::TooLarge { limit }) if limit == 3 << 20));
    drop(writer);
    for _ in 0..200 {
        if files(dir.path()).is_empty() {
            return assert!(matches!(objects.bytes(&key).await, Err(Error::NotFound { .. })));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("left behind: {:?}", files(dir.path()));
}

#[tokio::test]
async fn what_a_killed_process_left_is_swept_and_the_rest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let objects = folder(dir.path());
    let key = Key::upload(Uuid::from_u128(1));
    objects.put(&key, pattern(10)).await.unwrap();
    let half = dir.path().join(format!("uploads/{}/data#12", Uuid::from_u128(1)));
    std::fs::write(&half, b"half").unwrap();
    let past = SystemTime::now() - Duration::from_secs(3600);
    assert_eq!(objects.sweep_unfinished(past).await.unwrap(), 0, "younger than the cutoff");
    let soon = SystemTime::now() + Duration::from_secs(60);
    assert_eq!(objects.sweep_unfinished(soon).await.unwrap(), 1);
    assert!(!half.exists() && objects.bytes(&key).await.is_ok());
}

#[tokio::test]
async fn everything_of_an_upload_goes_with_its_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let objects = folder(dir.path());
    let (mine, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
    for n in 0..3 {
        objects.put(&Key::part(mine, Uuid::from_u128(n)), pattern(5)).await.unwrap();
    }
    objects.put(&Key::upload(other), pattern(5)).await.unwrap();
    assert_eq!(objects.delete_all(&Key::of_upload(mine)).await.unwrap(), 3);
    let left: Vec<Key> = objects.list(&Key::all_uploads()).try_collect().await.unwrap();
    assert_eq!(left, [Key::upload(other)]);
    objects.delete(&Key::upload(mine)).await.unwrap();
}

#[tokio::test]
async fn a_local_file_is_stored_whole() {
    let dir = tempfile::tempdir().unwrap();
    let objects = folder(&dir.path().join("objects"));
    let file = dir.path().join("lora.safetensors");
    std::fs::write(&file, pattern(2_500_000)).unwrap();
    let key = Key::job(Uuid::nil(), 1, "lora.safetensors");
    assert_eq!(objects.put_file(&key, &file).await.unwrap().bytes, 2_500_000);
    assert!(all(objects.read(&key, None).await.unwrap()).await == pattern(2_500_000));
    objects.check().await.unwrap();
}

#[test]
fn unusable_places_are_refused_with_their_name() {
    let at = |url: &str| {
        Objects::open(&Options { location: Location::Url { url: url.to_owned(), options: Vec::new() } })
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    assert!(at("memory:///x").contains("s3://"), "{}", at("memory:///x"));
    assert!(at("not a url").contains("not a url"));
    let file = tempfile::NamedTempFile::new().unwrap();
    let on_a_file =
        Objects::open(&Options { location: Location::Folder(file.path().join("x")) }).err().unwrap();
    assert!(on_a_file.to_string().contains("cannot use the folder"), "{on_a_file}");
}
