//! What the host may do to a verified image: the input says which bytes it changes. A read gives the
//! right data or an error, and what an error leaves behind is nothing.
#![no_main]

use std::sync::OnceLock;

use bulla_abi::config::Rootfs;
use bulla_rootfs::{Attributes, Builder};
use bulla_vault::{BlockSource, SourceFault, Verity};
use sha2::{Digest, Sha256};

/// Enough for a tree of two levels.
const SIZE: usize = 130 * 4096;

fn image() -> &'static (Vec<u8>, Rootfs) {
    static IMAGE: OnceLock<(Vec<u8>, Rootfs)> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let content: Vec<u8> = (0..SIZE).map(|at| (at * at / 7) as u8).collect();
        let mut builder = Builder::new();
        let plain = Attributes::default();
        builder
            .add_file(b"file", plain, SIZE as u64, &mut &content[..])
            .expect("valid");
        let path = std::env::temp_dir().join(format!("bulla-fuzz-{}", std::process::id()));
        let out = std::fs::File::create(&path).expect("a temporary file");
        let rootfs = builder.finish(out).expect("it can be built");
        let bytes = std::fs::read(&path).expect("it was written");
        let _ = std::fs::remove_file(path);
        (bytes, rootfs)
    })
}

struct Host(Vec<u8>);

impl BlockSource for Host {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), SourceFault> {
        let start = usize::try_from(offset).map_err(|_| SourceFault)?;
        let end = start.checked_add(buf.len()).ok_or(SourceFault)?;
        buf.copy_from_slice(self.0.get(start..end).ok_or(SourceFault)?);
        Ok(())
    }

    fn sha256(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut hash = Sha256::new();
        parts.iter().for_each(|part| hash.update(part));
        hash.finalize().into()
    }
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let (genuine, rootfs) = image();
    let mut bytes = genuine.clone();
    let mut rootfs = rootfs.clone();
    // Four bytes each: where (three bytes), and what to flip. The last byte of all cuts the file off,
    // or lies about its sizes.
    let (changes, rest) = input.as_chunks::<4>();
    for [a, b, c, bits] in changes {
        let at = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let at = at % bytes.len();
        bytes[at] ^= bits;
    }
    let described = rootfs.clone();
    match rest {
        [] => {}
        [n] => bytes.truncate(usize::from(*n) * 4096),
        [n, more @ ..] => {
            rootfs.data_size = rootfs.data_size.wrapping_add(i64::from(*n as i8) as u64);
            if let [m] = more {
                rootfs.tree_size = u64::from(*m) << 12;
            }
        }
    }
    let Ok(verity) = Verity::new(Host(bytes), &rootfs, 64 << 10) else {
        return;
    };
    let mut block = [0; 4096];
    for number in 0..verity.data_blocks().min(200) {
        block.fill(0xaa);
        match verity.read_blocks(number, &mut block) {
            Ok(()) if rootfs == described => {
                let start = number as usize * 4096;
                assert!(block == genuine[start..start + 4096], "block {number}");
            }
            Ok(()) => {}
            Err(_) => assert!(block.iter().all(|byte| *byte == 0), "block {number}"),
        }
    }
});
