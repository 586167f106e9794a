//! Records of a journal: sealed batches, each bound to its place.
//!
//! ```text
//! u32 length (little-endian) | nonce 12 | sealed JSON batch | tag 16
//! ```
//! The context of a record is the snapshot's id, the record's revision and the tag of the record
//! before it, so records can be neither left out, swapped, nor moved to another state. A record
//! that the file's end cuts off was never acknowledged, and is dropped.

use super::{Batch, StoreError};
use crate::seal::Key;
use std::path::Path;

const TAG_BYTES: usize = 16;
/// A single batch is at most a manifest and its secrets; more than this is not a length.
const MOST_BYTES: usize = 256 << 20;

/// Where the next record goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    pub snapshot: String,
    pub revision: u64,
    tag: [u8; TAG_BYTES],
}

impl Position {
    pub fn after_snapshot(snapshot: &str, revision: u64) -> Position {
        Position {
            snapshot: snapshot.to_owned(),
            revision,
            tag: [0; TAG_BYTES],
        }
    }

    fn context(&self) -> Vec<u8> {
        [
            b"journal\0",
            self.snapshot.as_bytes(),
            b"\0",
            &self.revision.to_le_bytes(),
            &self.tag,
        ]
        .concat()
    }

    fn advance(&mut self, sealed: &[u8]) {
        self.revision += 1;
        if let Some(tag) = sealed.last_chunk() {
            self.tag = *tag;
        }
    }

    /// Writes a batch's record to `out`.
    pub fn append(
        &mut self,
        key: &Key,
        batch: &Batch,
        out: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        let plain = zeroize::Zeroizing::new(encode(batch));
        let sealed = key.seal(&self.context(), &plain)?;
        out.extend_from_slice(&(sealed.len() as u32).to_le_bytes());
        out.extend_from_slice(&sealed);
        self.advance(&sealed);
        Ok(())
    }

    /// Reads all records; returns the batches and the length of what was whole.
    pub fn replay(
        &mut self,
        key: &Key,
        bytes: &[u8],
        path: &Path,
    ) -> Result<(Vec<Batch>, usize), StoreError> {
        let mut batches = Vec::new();
        let mut at = 0;
        while let Some((length, rest)) = bytes[at..].split_first_chunk::<4>() {
            let length = u32::from_le_bytes(*length) as usize;
            let damaged = |reason: String| StoreError::Damaged {
                path: path.to_owned(),
                reason,
            };
            if length == 0 && rest.iter().all(|byte| *byte == 0) {
                // Blocks that the file system gave out before a power cut.
                break;
            }
            if !(TAG_BYTES..=MOST_BYTES).contains(&length) {
                return Err(damaged(format!(
                    "record {} has no valid length",
                    self.revision
                )));
            }
            let Some(sealed) = rest.get(..length) else {
                break;
            };
            let plain = match key.open(&self.context(), sealed) {
                Ok(plain) => zeroize::Zeroizing::new(plain),
                // The last record may have been half written by a power cut.
                Err(_) if rest.len() == length => break,
                Err(_) => {
                    return Err(damaged(format!(
                        "record {} does not belong here or was changed",
                        self.revision
                    )));
                }
            };
            let batch = decode(&plain)
                .ok_or_else(|| damaged(format!("record {} is no batch", self.revision)))?;
            self.advance(sealed);
            batches.push(batch);
            at += 4 + length;
        }
        Ok((batches, at))
    }
}

/// Lengths and bytes: values are not text.
fn encode(batch: &Batch) -> Vec<u8> {
    let mut out = Vec::new();
    let mut put = |bytes: &[u8]| {
        out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        out.extend_from_slice(bytes);
    };
    for (key, value) in &batch.changes {
        put(key.as_bytes());
        match value {
            Some(value) => {
                put(b"=");
                put(value);
            }
            None => put(b"-"),
        }
    }
    out
}

fn decode(mut bytes: &[u8]) -> Option<Batch> {
    let mut batch = Batch::default();
    fn take<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (value, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        *bytes = rest;
        Some(value)
    }
    while !bytes.is_empty() {
        let key = String::from_utf8(take(&mut bytes)?.to_vec()).ok()?;
        let value = match take(&mut bytes)? {
            b"=" => Some(take(&mut bytes)?.to_vec()),
            b"-" => None,
            _ => return None,
        };
        batch.changes.push((key, value));
    }
    Some(batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches(count: usize) -> Vec<Batch> {
        (0..count)
            .map(|i| {
                Batch::default()
                    .put(format!("key{i}"), vec![i as u8; i * 7])
                    .delete("gone")
            })
            .collect()
    }

    fn written(key: &Key, batches: &[Batch]) -> Vec<u8> {
        let mut position = Position::after_snapshot("s", 4);
        let mut bytes = Vec::new();
        for batch in batches {
            position.append(key, batch, &mut bytes).unwrap();
        }
        bytes
    }

    #[test]
    fn every_prefix_gives_the_batches_that_are_whole() {
        let key = Key::random().unwrap();
        let all = batches(4);
        let bytes = written(&key, &all);
        for length in 0..=bytes.len() {
            let mut position = Position::after_snapshot("s", 4);
            let (read, used) = position
                .replay(&key, &bytes[..length], Path::new("j"))
                .unwrap();
            assert_eq!(read, all[..read.len()]);
            assert!(used <= length);
            assert_eq!(position.revision, 4 + read.len() as u64);
            assert_eq!(read.len() == 4, length == bytes.len());
        }
    }

    #[test]
    fn records_cannot_be_changed_left_out_swapped_or_moved() {
        let key = Key::random().unwrap();
        let all = batches(3);
        let bytes = written(&key, &all);
        let first = 4 + u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize;
        let replay = |bytes: &[u8], snapshot: &str| {
            Position::after_snapshot(snapshot, 4).replay(&key, bytes, Path::new("j"))
        };
        for at in 0..first {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            // A changed length may look like a torn end; it never gives other content.
            if let Ok((read, _)) = replay(&changed, "s") {
                assert!(read.is_empty(), "byte {at}");
            }
        }
        assert!(replay(&bytes[first..], "s").is_err(), "left out");
        assert!(replay(&bytes, "t").is_err(), "moved");
        let second =
            first + 4 + u32::from_le_bytes(bytes[first..first + 4].try_into().unwrap()) as usize;
        let swapped = [&bytes[first..second], &bytes[..first], &bytes[second..]].concat();
        assert!(replay(&swapped, "s").is_err(), "swapped");
    }
}
