//! What only a local folder needs: direct reads in large pieces, and the removal of files that a killed process left
//! half written.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::stream::{self, Stream};

/// Bytes read at a time: large enough that the hop to a blocking thread costs little, small enough that a slow reader
/// holds no memory worth counting.
const READ_BYTES: u64 = 512 << 10;

/// Reads a range of an open file; each piece is read only when the one before it was taken.
pub(crate) fn read(mut file: File, range: Range<u64>) -> impl Stream<Item = std::io::Result<Bytes>> + Send {
    let sought = file.seek(SeekFrom::Start(range.start)).map(|_| file);
    stream::try_unfold((Some(sought), range.end - range.start), |(file, left)| async move {
        let mut file = match file {
            Some(sought) if left > 0 => sought?,
            _ => return Ok(None),
        };
        let (file, piece) = tokio::task::spawn_blocking(move || {
            let mut piece = Vec::with_capacity(left.min(READ_BYTES) as usize);
            (&mut file).take(left.min(READ_BYTES)).read_to_end(&mut piece)?;
            if piece.is_empty() {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
            }
            Ok((file, piece))
        })
        .await
        .map_err(std::io::Error::other)??;
        let left = left - piece.len() as u64;
        Ok(Some((Bytes::from(piece), (Some(Ok(file)), left))))
    })
}

/// Removes half-written files (the storage crate names them `<name>#<number>`) last touched before `cutoff`.
/// Returns how many.
pub(crate) fn sweep_unfinished(folder: &Path, cutoff: SystemTime) -> std::io::Result<u64> {
    let mut removed = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            removed += sweep_unfinished(&entry.path(), cutoff)?;
        } else if kind.is_file() && is_unfinished(&entry.file_name().to_string_lossy()) {
            // Another process may remove it first.
            let old = entry.metadata().and_then(|data| data.modified()).is_ok_and(|touched| touched < cutoff);
            removed += u64::from(old && std::fs::remove_file(entry.path()).is_ok());
        }
    }
    Ok(removed)
}

fn is_unfinished(name: &str) -> bool {
    name.rsplit_once('#')
        .is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}
