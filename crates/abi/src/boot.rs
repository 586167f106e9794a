//! The boot header: measured data in the bootstrap that says what else the enclave consists of.
//!
//! The image builder finds it in the bootstrap's ELF file by the symbol [`HEADER_SYMBOL`], checks
//! [`MAGIC`] and writes the fields. Everything added without measurement is listed in `hashed` or
//! `zeroed`: on the first entry the bootstrap hashes the former, in order, compares with `hash`,
//! clears the latter, and only then lets anything enter the runtime.

/// Symbol of the header in the bootstrap's ELF file.
pub const HEADER_SYMBOL: &str = "BULLA_BOOT_HEADER";
/// First field of the header ("bullaBH1", little endian).
pub const MAGIC: u64 = u64::from_le_bytes(*b"bullaBH1");
/// Every range in [`BootHeader::hashed`] is hashed in pieces that end where the address is a multiple of
/// this; the first and the last one of a range may be shorter.
pub const HASH_PIECE: u64 = 64 << 10;
/// Entries in each of the two tables.
pub const RANGES_MAX: usize = 8;

/// A run of bytes in the enclave. Unused table entries have `len` 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// Linear address, page aligned.
    pub start: u64,
    /// Bytes, a multiple of the page size.
    pub len: u64,
}

/// The header. All fields little endian, no padding.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BootHeader {
    pub magic: u64,
    /// 0 dynamic, 1 static.
    pub layout: u32,
    /// Thread slots that are part of the image.
    pub slots: u32,
    /// Most thread slots that may ever exist.
    pub slots_max: u32,
    pub reserved: u32,
    /// Address the bootstrap jumps to once all is verified.
    pub runtime_entry: u64,
    /// Where the configuration (postcard of [`crate::config::Config`]) starts, and its exact size.
    pub config_start: u64,
    pub config_len: u64,
    /// The kernel heap: its start, what is committed at start, and how far it may grow.
    pub heap_start: u64,
    pub heap_committed: u64,
    pub heap_max: u64,
    /// The application's part of ELRANGE. In the static layout all of it is committed at start.
    pub user_start: u64,
    pub user_end: u64,
    /// Unmeasured content that `hash` covers.
    pub hashed: [Range; RANGES_MAX],
    /// Unmeasured memory that must be cleared. In the static layout the application's part and the
    /// heap are not listed: the runtime clears those pages when it hands them out.
    pub zeroed: [Range; RANGES_MAX],
    /// SHA-256 of the SHA-256 of all pieces ([`HASH_PIECE`]) of the ranges in `hashed`, in order.
    pub hash: [u8; 32],
}

impl BootHeader {
    /// Size of the header in bytes.
    pub const SIZE: usize = 8 + 16 + 8 * 9 - 8 + RANGES_MAX * 32 + 32;

    /// A header with nothing but the magic number, as it stands in the ELF file.
    pub const EMPTY: BootHeader = BootHeader {
        magic: MAGIC,
        layout: 0,
        slots: 0,
        slots_max: 0,
        reserved: 0,
        runtime_entry: 0,
        config_start: 0,
        config_len: 0,
        heap_start: 0,
        heap_committed: 0,
        heap_max: 0,
        user_start: 0,
        user_end: 0,
        hashed: [Range { start: 0, len: 0 }; RANGES_MAX],
        zeroed: [Range { start: 0, len: 0 }; RANGES_MAX],
        hash: [0; 32],
    };

    /// The header's bytes as they stand in memory.
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut out = [0u8; Self::SIZE];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&self.magic.to_le_bytes());
        for word in [self.layout, self.slots, self.slots_max, self.reserved] {
            put(&word.to_le_bytes());
        }
        for word in [
            self.runtime_entry,
            self.config_start,
            self.config_len,
            self.heap_start,
            self.heap_committed,
            self.heap_max,
            self.user_start,
            self.user_end,
        ] {
            put(&word.to_le_bytes());
        }
        for range in self.hashed.iter().chain(&self.zeroed) {
            put(&range.start.to_le_bytes());
            put(&range.len.to_le_bytes());
        }
        put(&self.hash);
        out
    }
}

const _: () = assert!(BootHeader::SIZE == core::mem::size_of::<BootHeader>());
