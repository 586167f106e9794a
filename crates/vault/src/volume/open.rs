//! Making a volume, and reading one back.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use spin::Mutex;

use super::crypto::{Hash, Sealer, TAG};
use super::format::{
    ANCHOR_SIZE, Anchor, FRAME_HEADER, FrameHeader, HEADER_SIZE, Header, KeyParameters, LOG_HEADER,
};
use super::{
    Attributes, CHUNK, Change, Content, Object, PAGE, RECORD_MAX, ROOT, Record, Result, State,
    Volume, VolumeError, VolumeHost,
};

/// A log whose header is of the caller's key.
struct Candidate {
    header: Header,
    key: [u8; 32],
    chain_start: [u8; TAG],
}

impl<H: VolumeHost> Volume<H> {
    /// Opens the volume that the host keeps, or makes one where it keeps nothing: then the root
    /// directory has the attributes `root`, and its key is derived from `fresh` and a random id.
    ///
    /// `derive` gives the key for parameters out of a header, which are the host's word until the
    /// key has proved them.
    pub fn open(
        host: H,
        fresh: KeyParameters,
        root: Attributes,
        derive: &dyn Fn(&KeyParameters) -> Option<[u8; 32]>,
    ) -> Result<Volume<H>> {
        let hash = |parts: &[&[u8]]| host.sha256(parts);
        let mut candidates = Vec::new();
        let mut foreign = None;
        for object in [Object::First, Object::Second] {
            let mut bytes = [0; HEADER_SIZE];
            if host.size(object)? < LOG_HEADER {
                continue;
            }
            host.read(object, 0, &mut bytes)?;
            match Header::parse(&bytes) {
                None => foreign = foreign.or(Some(VolumeError::Tampered { object, offset: 0 })),
                Some(Err(error)) => foreign = Some(error),
                Some(Ok(header)) => match derive(&header.parameters) {
                    Some(key)
                        if Header::is_authentic(&bytes, &hash, &key)
                            && header.object() == object =>
                    {
                        candidates.push(Candidate {
                            header,
                            key,
                            chain_start: Header::chain_start(&bytes),
                        });
                    }
                    _ => foreign = Some(VolumeError::WrongKey),
                },
            }
        }
        if candidates.is_empty() {
            if let Some(error) = foreign {
                return Err(error);
            }
            if host.size(Object::Anchor)? != 0 {
                return Err(VolumeError::RolledBack {
                    found: 0,
                    expected: 1,
                });
            }
            return Volume::create(host, fresh, root, derive);
        }
        let anchors: Vec<Anchor> = candidates
            .iter()
            .map(|candidate| newest_anchor(&host, &hash, candidate))
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .collect();
        let Some(anchor) = anchors.into_iter().max_by_key(|anchor| anchor.version) else {
            return Volume::open_first(host, candidates);
        };
        let Some(candidate) = candidates
            .iter()
            .find(|candidate| candidate.header.generation == anchor.generation)
        else {
            return Err(foreign.unwrap_or(VolumeError::RolledBack {
                found: 0,
                expected: anchor.version,
            }));
        };
        Volume::replay(host, candidate, Some(anchor))
    }

    /// Without an anchor only a volume into which nothing was ever written is believed: its making
    /// may have been interrupted.
    fn open_first(host: H, candidates: Vec<Candidate>) -> Result<Volume<H>> {
        let [candidate] = &candidates[..] else {
            return Err(VolumeError::NoAnchor);
        };
        if candidate.header.generation != 1 {
            return Err(VolumeError::NoAnchor);
        }
        let volume = Volume::replay(host, candidate, None)?;
        let version = volume.usage().version;
        if version > 1 {
            return Err(VolumeError::NoAnchor);
        }
        if version == 0 {
            // Not even the root directory.
            volume.commit(ROOT + 1, vec![root_change(default_root())], |page| page)?;
        } else {
            volume.write_anchor()?;
        }
        Ok(volume)
    }

    fn create(
        host: H,
        mut parameters: KeyParameters,
        root: Attributes,
        derive: &dyn Fn(&KeyParameters) -> Option<[u8; 32]>,
    ) -> Result<Volume<H>> {
        host.random(&mut parameters.key_id);
        let mut id = [0; 16];
        host.random(&mut id);
        let key = derive(&parameters).ok_or(VolumeError::WrongKey)?;
        let header = Header {
            id,
            generation: 1,
            parameters,
        };
        let chain_start = write_header(&host, &header, &key)?;
        let candidate = Candidate {
            header,
            key,
            chain_start,
        };
        let volume = Volume::replay(host, &candidate, None)?;
        volume.commit(ROOT + 1, vec![root_change(root)], |page| page)?;
        Ok(volume)
    }

    /// Reads all frames of a log.
    fn replay(host: H, candidate: &Candidate, anchor: Option<Anchor>) -> Result<Volume<H>> {
        let object = candidate.header.object();
        let size = host.size(object)?;
        let hash = |parts: &[&[u8]]| host.sha256(parts);
        let mut state = State {
            header: candidate.header,
            version: 0,
            tag: candidate.chain_start,
            end: LOG_HEADER,
            sessions: Vec::new(),
            nonce: 1,
            nodes: BTreeMap::new(),
            orphans: Vec::new(),
            pages: 0,
            next_number: ROOT + 1,
        };
        let mut proved = anchor.is_none();
        while let Some(frame) = read_frame(&host, &hash, &candidate.key, &mut state, size)? {
            let Frame {
                header,
                record,
                tag,
                session,
                end,
            } = frame;
            let pages = state.end + FRAME_HEADER as u64;
            state.apply(record, pages, header.nonce, session)?;
            (state.version, state.tag, state.end) = (header.version, tag, end);
            if anchor
                .is_some_and(|anchor| anchor.version == state.version && anchor.tag == state.tag)
            {
                proved = true;
            }
        }
        if let Some(anchor) = anchor.filter(|_| !proved) {
            // What is missing was cut off, or is there and was changed.
            return Err(if size > state.end && state.version < anchor.version {
                VolumeError::Tampered {
                    object,
                    offset: state.end,
                }
            } else {
                VolumeError::RolledBack {
                    found: state.version,
                    expected: anchor.version,
                }
            });
        }
        let mut session = [0; 16];
        host.random(&mut session);
        let sealer = Arc::new(Sealer::new(&hash, &candidate.key, &session));
        state.sessions.push((session, sealer));
        Ok(Volume {
            host,
            key: candidate.key,
            state: Mutex::new(state),
            committing: Mutex::new(()),
        })
    }
}

/// Starts a log; the result is what its first frame authenticates.
pub(super) fn write_header(
    host: &impl VolumeHost,
    header: &Header,
    key: &[u8; 32],
) -> Result<[u8; TAG]> {
    let bytes = header.to_bytes(&|parts| host.sha256(parts), key);
    let mut block = [0; LOG_HEADER as usize];
    block[..HEADER_SIZE].copy_from_slice(&bytes);
    host.resize(header.object(), 0)?;
    host.write(header.object(), 0, &block)?;
    Ok(Header::chain_start(&bytes))
}

fn default_root() -> Attributes {
    Attributes {
        mode: 0o040755,
        links: 2,
        ..Attributes::default()
    }
}

fn root_change(attributes: Attributes) -> Change<[u8; PAGE]> {
    Change::Set {
        number: ROOT,
        attributes,
        content: Content::Directory(Vec::new()),
    }
}

/// The newest anchor of a candidate's volume that its key made.
fn newest_anchor(
    host: &impl VolumeHost,
    hash: &Hash<'_>,
    candidate: &Candidate,
) -> Result<Option<Anchor>> {
    let size = host.size(Object::Anchor)?;
    let mut newest: Option<Anchor> = None;
    for slot in Anchor::SLOTS {
        if slot + ANCHOR_SIZE as u64 > size {
            continue;
        }
        let mut bytes = [0; ANCHOR_SIZE];
        host.read(Object::Anchor, slot, &mut bytes)?;
        let anchor = Anchor::open(&bytes, hash, &candidate.key);
        let anchor = anchor.filter(|anchor| anchor.id == candidate.header.id);
        newest = match (newest, anchor) {
            (Some(one), Some(other)) if one.version >= other.version => Some(one),
            (one, other) => other.or(one),
        };
    }
    Ok(newest)
}

struct Frame {
    header: FrameHeader,
    record: Record,
    tag: [u8; TAG],
    session: u32,
    end: u64,
}

/// The frame at the end of what was read; `None` where none follows that is whole and authentic.
fn read_frame(
    host: &impl VolumeHost,
    hash: &Hash<'_>,
    key: &[u8; 32],
    state: &mut State,
    size: u64,
) -> Result<Option<Frame>> {
    let (object, start) = (state.object(), state.end);
    let room = size.saturating_sub(start);
    if room < (FRAME_HEADER + TAG) as u64 {
        return Ok(None);
    }
    let mut bytes = [0; FRAME_HEADER];
    host.read(object, start, &mut bytes)?;
    let Some(header) = FrameHeader::parse(&bytes) else {
        return Ok(None);
    };
    let pages = u64::from(header.pages) * PAGE as u64;
    let record = header.record as usize;
    let len = FRAME_HEADER as u64 + pages + record as u64 + TAG as u64;
    // The first frame of a later generation continues the versions of the one before.
    let follows = header.version == state.version + 1
        || state.version == 0 && state.header.generation > 1 && header.version > 1;
    if record > RECORD_MAX || len > room || !follows {
        return Ok(None);
    }
    let mut text = vec![0; record + TAG];
    let mut at = start + FRAME_HEADER as u64 + pages;
    for part in text.chunks_mut(CHUNK) {
        host.read(object, at, part)?;
        at += part.len() as u64;
    }
    let mut tag = [0; TAG];
    tag.copy_from_slice(&text[record..]);
    text.truncate(record);
    let known = state
        .sessions
        .iter()
        .position(|(id, _)| *id == header.session);
    let sealer = match known {
        Some(index) => state.sessions[index].1.clone(),
        None => Arc::new(Sealer::new(hash, key, &header.session)),
    };
    if !sealer.open(header.nonce, &[&bytes, &state.tag], &mut text, &tag) {
        return Ok(None);
    }
    let session = known.unwrap_or_else(|| {
        state.sessions.push((header.session, sealer));
        state.sessions.len() - 1
    });
    let record = postcard::from_bytes(&text).map_err(|_| VolumeError::Malformed)?;
    Ok(Some(Frame {
        header,
        record,
        tag,
        session: session as u32,
        end: start + len,
    }))
}
