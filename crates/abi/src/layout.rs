//! The enclave's address range (ELRANGE): addresses and sizes in bytes.
//!
//! ELRANGE starts at 0 so that position-dependent programs load where they were linked. The
//! application owns the low part, the trusted runtime the top [`RUNTIME_SPAN`] bytes:
//!
//! ```text
//! 0            64 KiB                                E - 16 GiB                            E
//! | nothing    | application (user)                  | runtime                             |
//!                                                    +0        bootstrap (measured)
//!                                                    +1 MiB    runtime text, rodata, data, bss
//!                                                    +64 MiB   configuration
//!                                                    +128 MiB  hole (a platform's own page)
//!                                                    +256 MiB  thread slots
//!                                                    +2 GiB    kernel heap
//! ```

use serde::{Deserialize, Serialize};

/// Which of the two enclave layouts an image has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LayoutKind {
    /// EDMM works: memory and threads are added while the enclave runs. ELRANGE is [0, 2^46): programs
    /// reserve much more than they use (InnoDB 8 TiB for its buffer pool), and all have addresses of
    /// their own.
    Dynamic,
    /// No EDMM: every page is added before EINIT. ELRANGE is [0, 2^36).
    Static,
}

impl LayoutKind {
    /// Size of ELRANGE in bytes (a power of two, as SECS.SIZE must be).
    pub const fn elrange_size(self) -> u64 {
        match self {
            LayoutKind::Dynamic => 1 << 46,
            LayoutKind::Static => 1 << 36,
        }
    }

    /// First address of the trusted runtime's part; also the end of the application's part.
    pub const fn runtime_start(self) -> u64 {
        self.elrange_size() - RUNTIME_SPAN
    }

    /// The name used in manifests and reports.
    pub const fn name(self) -> &'static str {
        match self {
            LayoutKind::Dynamic => "dynamic",
            LayoutKind::Static => "static",
        }
    }
}

/// First address of the application's part. Below it a null pointer finds nothing.
pub const USER_START: u64 = 0x1_0000;
/// Bytes at the top of ELRANGE that belong to the runtime.
pub const RUNTIME_SPAN: u64 = 16 << 30;
/// Offset of the bootstrap from the runtime's start.
pub const BOOTSTRAP_OFFSET: u64 = 0;
/// The bootstrap is measured page by page with EEXTEND, which is slow, so it must stay small.
pub const BOOTSTRAP_MAX: u64 = 128 << 10;
/// Offset of the runtime's image (text, rodata, data, bss) from the runtime's start.
pub const IMAGE_OFFSET: u64 = 1 << 20;
/// Offset of the configuration pages from the runtime's start.
pub const CONFIG_OFFSET: u64 = 64 << 20;
/// The configuration may not be larger than this. Files are in it: the agent alone has nearly 4 MiB.
pub const CONFIG_MAX: u64 = 8 << 20;
/// Offset of a hole that is never part of the enclave. The emulated platform keeps a page of its
/// own there; on hardware it reads as an abort page.
pub const HOLE_OFFSET: u64 = 128 << 20;
/// Size of that hole.
pub const HOLE_SIZE: u64 = 1 << 20;
/// Offset of thread slot 0 from the runtime's start.
pub const SLOTS_OFFSET: u64 = 256 << 20;
/// Bytes from one thread slot to the next.
pub const SLOT_STRIDE: u64 = 256 << 10;
/// Most thread slots that the address range has room for.
pub const SLOTS_MAX: u32 = 4096;
/// Offset of the kernel heap from the runtime's start.
pub const HEAP_OFFSET: u64 = 2 << 30;
/// Largest kernel heap.
pub const HEAP_MAX: u64 = RUNTIME_SPAN - HEAP_OFFSET;

/// Size up to which the kernel heap is small: it grows in steps of less than a huge page.
pub const SMALL_HEAP: u64 = 4 << 20;

/// Pages in one SSA frame, always (architecture §4).
pub const SSA_FRAME_PAGES: u64 = 4;
/// SSA frames of each thread: user code, exception stage 1, and one that must never be used.
pub const NSSA: u64 = 3;

/// One thread slot, offsets from its start. The gap pages are never added, so that a stack that
/// overflows faults.
pub mod slot {
    /// Guard page, then the kernel stack (grows down).
    pub const KERNEL_STACK: u64 = 0x1000;
    /// Size of the kernel stack in bytes.
    pub const KERNEL_STACK_SIZE: u64 = 0x1_8000;
    /// Stack of exception stage 1, after a guard page.
    pub const EXCEPTION_STACK: u64 = 0x1_A000;
    /// Its size in bytes.
    pub const EXCEPTION_STACK_SIZE: u64 = 0x2000;
    /// The thread area that GS points to, after a guard page.
    pub const AREA: u64 = 0x1_D000;
    /// Its size in bytes.
    pub const AREA_SIZE: u64 = 0x1000;
    /// The SSA frames, after a guard page.
    pub const SSA: u64 = 0x2_0000;
    /// Their size in bytes.
    pub const SSA_SIZE: u64 = super::NSSA * super::SSA_FRAME_PAGES * 0x1000;
    /// The TCS page, alone between gaps (the driver wants a mapping of its own for it).
    pub const TCS: u64 = 0x3_0000;
}

/// Address of thread slot `index`.
pub const fn slot_start(kind: LayoutKind, index: u32) -> u64 {
    kind.runtime_start() + SLOTS_OFFSET + index as u64 * SLOT_STRIDE
}

/// Address of the TCS of thread slot `index`.
pub const fn tcs_address(kind: LayoutKind, index: u32) -> u64 {
    slot_start(kind, index) + slot::TCS
}

/// Thread slots built into a dynamic enclave; more are added as they are needed.
pub const INITIAL_SLOTS_DYNAMIC: u32 = 4;
/// Thread slots of a static enclave when the manifest does not say.
pub const DEFAULT_SLOTS_STATIC: u32 = 64;
