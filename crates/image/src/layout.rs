//! The enclave's layout: which page holds what, and the measurement of it all.
//!
//! Order is ascending by address, which is also the order of measurement:
//! application memory (static layout), bootstrap, runtime, configuration, thread slots, kernel
//! heap.
//!
//! Invariants:
//! - Everything that the runtime relies on is measured, or covered by the hash in the measured
//!   boot header, or listed there to be cleared. The exceptions (stacks, SSA frames, heap and
//!   application memory) have content that the runtime never reads before it wrote it.
//! - Equal input gives equal pages and an equal MRENCLAVE.

use crate::elf::{ElfError, Pages, PagesContent, Program};
use crate::pieces::{Known, Pieces};
use bulla_abi::PAGE_SIZE;
use bulla_abi::boot::{BootHeader, HEADER_SYMBOL, MAGIC, RANGES_MAX, Range};
use bulla_abi::config::{Config, Insecure};
use bulla_abi::layout::{self as map, LayoutKind, slot};
use bulla_sgx::{Attributes, Measurement, SecInfo, Secs, Tcs, flags, misc, xfrm};
use bytes::Bytes;

/// Kernel heap that a dynamic enclave starts with; it grows by EAUG. What the smallest program
/// needs, and a whole huge page.
const HEAP_DYNAMIC: u64 = 2 << 20;
/// Kernel heap of a static enclave, and the share of the application's memory that is added: an
/// object of the kernel (inode, page descriptor, socket buffer) goes with what applications use.
const HEAP_STATIC: u64 = 64 << 20;
const HEAP_STATIC_SHARE: u64 = 16;

/// Why an enclave cannot be laid out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    #[error("the bootstrap: {0}")]
    Bootstrap(#[source] ElfError),
    #[error("the runtime: {0}")]
    Runtime(#[source] ElfError),
    /// Nothing to write the boot header to.
    #[error("the bootstrap has no symbol {HEADER_SYMBOL}: was it stripped?")]
    NoHeader,
    /// The symbol is there, but what it names is not an empty header.
    #[error("{HEADER_SYMBOL} does not start with the expected magic number: rebuild the bootstrap")]
    BadHeader,
    #[error("the bootstrap has {0} bytes, more than the {max} that are measured",
        max = map::BOOTSTRAP_MAX)]
    BootstrapTooLarge(u64),
    #[error("the configuration has {0} bytes, more than {max}: shorten arguments, environment \
        or files", max = map::CONFIG_MAX)]
    ConfigTooLarge(u64),
    #[error("{0} threads asked for, at most {max} are possible", max = map::SLOTS_MAX)]
    TooManyThreads(u32),
    #[error("{wanted} bytes of memory asked for, the {layout} layout has room for {room}")]
    TooMuchMemory {
        wanted: u64,
        layout: &'static str,
        room: u64,
    },
    #[error("the runtime has more than {RANGES_MAX} separate ranges of {0} memory")]
    TooManyRanges(&'static str),
}

/// What the SECS asks of the CPU. None of it is part of MRENCLAVE; SIGSTRUCT says which bits the
/// CPU compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Ask for the addresses of page faults (MISCSELECT.EXINFO).
    pub exinfo: bool,
    /// Ask for key separation and sharing (ATTRIBUTES.KSS).
    pub kss: bool,
    /// Extended state that the enclave may use, see [`bulla_sgx::xfrm`].
    pub xfrm: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            exinfo: true,
            kss: false,
            xfrm: xfrm::LEGACY | xfrm::OPTIONAL,
        }
    }
}

/// Consecutive pages with equal SECINFO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// Linear address of the first page.
    pub address: u64,
    /// Permissions and page type.
    pub info: SecInfo,
    /// Whether the content is extended into MRENCLAVE.
    pub measured: bool,
    pub content: Content,
}

/// Content of a [`PageRun`]; a multiple of the page size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Data(Bytes),
    /// This many bytes of zero.
    Zero(u64),
}

impl PageRun {
    /// Bytes in the run.
    pub fn len(&self) -> u64 {
        match &self.content {
            Content::Data(bytes) => bytes.len() as u64,
            Content::Zero(len) => *len,
        }
    }

    /// Runs are never empty, but a `len` wants its `is_empty`.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Address after the last page.
    pub fn end(&self) -> u64 {
        self.address + self.len()
    }
}

/// A complete enclave, ready to be added page by page, in the order of `runs`.
#[derive(Clone, Debug)]
pub struct EnclaveImage {
    pub kind: LayoutKind,
    /// SECS as ECREATE takes it, base address 0.
    pub secs: Secs,
    /// Ascending and disjoint.
    pub runs: Vec<PageRun>,
    pub mrenclave: [u8; 32],
    /// What the bootstrap was told.
    pub boot: BootHeader,
}

impl EnclaveImage {
    /// Number of pages that are added.
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(PageRun::len).sum::<u64>() / PAGE_SIZE
    }

    /// Number of pages whose content is measured.
    pub fn measured_pages(&self) -> u64 {
        let measured = self.runs.iter().filter(|run| run.measured);
        measured.map(PageRun::len).sum::<u64>() / PAGE_SIZE
    }
}

/// Lays out and measures an enclave from the ELF files of bootstrap and runtime.
pub fn layout(
    bootstrap: &[u8],
    runtime: &[u8],
    config: &Config,
    kind: LayoutKind,
    options: &Options,
) -> Result<EnclaveImage, LayoutError> {
    let [bootstrap, runtime] = [bootstrap, runtime].map(Bytes::copy_from_slice);
    layout_of(bootstrap, runtime, config, kind, options)
}

/// [`layout`] without copying the files.
pub fn layout_of(
    bootstrap: Bytes,
    runtime: Bytes,
    config: &Config,
    kind: LayoutKind,
    options: &Options,
) -> Result<EnclaveImage, LayoutError> {
    let start = kind.runtime_start();
    let shape = Shape::new(config, kind)?;

    let image_start = start + map::IMAGE_OFFSET;
    let room = map::CONFIG_OFFSET - map::IMAGE_OFFSET;
    let runtime = Program::load(runtime, image_start, room).map_err(LayoutError::Runtime)?;
    let runtime_entry = runtime.entry;
    let runtime = runtime.into_pages();

    let config_bytes = config.to_bytes();
    let config_len = config_bytes.len() as u64;
    if config_len > map::CONFIG_MAX {
        return Err(LayoutError::ConfigTooLarge(config_len));
    }
    let config_pages = PageRun {
        address: start + map::CONFIG_OFFSET,
        info: SecInfo::regular(SecInfo::R),
        measured: false,
        content: Content::Data(padded(config_bytes)),
    };

    let mut tables = Tables::new(Pieces::new(known_pieces(), image_start));
    let mut runs = Vec::with_capacity(16 + runtime.len() + 5 * shape.slots as usize);
    runs.extend(shape.user_memory());
    let mut image_runs = Vec::with_capacity(runtime.len());
    for pages in runtime {
        let run = unmeasured(pages);
        tables.add(&run)?;
        image_runs.push(run);
    }
    tables.add(&config_pages)?;

    let boot = BootHeader {
        layout: match kind {
            LayoutKind::Dynamic => 0,
            LayoutKind::Static => 1,
        },
        slots: shape.slots,
        slots_max: shape.slots_max,
        runtime_entry,
        config_start: config_pages.address,
        config_len,
        heap_start: start + map::HEAP_OFFSET,
        heap_committed: shape.heap_committed,
        heap_max: shape.heap_max,
        user_start: map::USER_START,
        user_end: shape.user_end,
        hashed: tables.hashed.ranges,
        zeroed: tables.zeroed.ranges,
        hash: tables.pieces.finish(),
        ..BootHeader::EMPTY
    };
    let entry = place_bootstrap(bootstrap, &boot, start + map::BOOTSTRAP_OFFSET, &mut runs)?;
    runs.extend(image_runs);
    runs.push(config_pages);
    for index in 0..shape.slots {
        thread_slot(kind, index, entry, &mut runs);
    }
    runs.push(PageRun {
        address: boot.heap_start,
        info: SecInfo::regular(SecInfo::R | SecInfo::W),
        measured: false,
        content: Content::Zero(shape.heap_committed),
    });

    let secs = secs(config, kind, options);
    let mrenclave = measure(&secs, &runs);
    Ok(EnclaveImage {
        kind,
        secs,
        runs,
        mrenclave,
        boot,
    })
}

/// Sizes that follow from the configuration.
struct Shape {
    slots: u32,
    slots_max: u32,
    heap_committed: u64,
    heap_max: u64,
    user_end: u64,
    kind: LayoutKind,
}

impl Shape {
    fn new(config: &Config, kind: LayoutKind) -> Result<Shape, LayoutError> {
        let threads = config.threads;
        if threads > map::SLOTS_MAX {
            return Err(LayoutError::TooManyThreads(threads));
        }
        let room = kind.runtime_start() - map::USER_START;
        if config.memory > room {
            let (wanted, layout) = (config.memory, kind.name());
            return Err(LayoutError::TooMuchMemory {
                wanted,
                layout,
                room,
            });
        }
        let memory = config.memory.next_multiple_of(PAGE_SIZE);
        Ok(match kind {
            LayoutKind::Dynamic => Shape {
                slots: map::INITIAL_SLOTS_DYNAMIC,
                slots_max: threads.max(map::INITIAL_SLOTS_DYNAMIC),
                heap_committed: HEAP_DYNAMIC,
                heap_max: map::HEAP_MAX,
                user_end: kind.runtime_start(),
                kind,
            },
            LayoutKind::Static => {
                let slots = if threads == 0 {
                    map::DEFAULT_SLOTS_STATIC
                } else {
                    threads
                };
                let share = (memory / HEAP_STATIC_SHARE).next_multiple_of(PAGE_SIZE);
                let heap = (HEAP_STATIC + share).min(map::HEAP_MAX);
                Shape {
                    slots,
                    slots_max: slots,
                    heap_committed: heap,
                    heap_max: heap,
                    user_end: map::USER_START + memory,
                    kind,
                }
            }
        })
    }

    /// Application memory of a static enclave. Permissions are the most that EADD can give, since
    /// without EDMM they can never be changed.
    fn user_memory(&self) -> Option<PageRun> {
        let len = self.user_end - map::USER_START;
        (self.kind == LayoutKind::Static && len > 0).then(|| PageRun {
            address: map::USER_START,
            info: SecInfo::regular(SecInfo::R | SecInfo::W | SecInfo::X),
            measured: false,
            content: Content::Zero(len),
        })
    }
}

/// One table of the boot header: ranges that touch become one.
struct Table {
    ranges: [Range; RANGES_MAX],
    used: usize,
    name: &'static str,
}

impl Table {
    fn new(name: &'static str) -> Table {
        Table {
            ranges: [Range::default(); RANGES_MAX],
            used: 0,
            name,
        }
    }

    fn add(&mut self, start: u64, len: u64) -> Result<(), LayoutError> {
        if let Some(last) = self.ranges[..self.used].last_mut()
            && last.start + last.len == start
        {
            last.len += len;
            return Ok(());
        }
        let free = self
            .ranges
            .get_mut(self.used)
            .ok_or(LayoutError::TooManyRanges(self.name))?;
        *free = Range { start, len };
        self.used += 1;
        Ok(())
    }
}

/// What the bootstrap has to check and to clear.
struct Tables {
    hashed: Table,
    zeroed: Table,
    pieces: Pieces<'static>,
}

impl Tables {
    fn new(pieces: Pieces<'static>) -> Tables {
        Tables {
            hashed: Table::new("hashed"),
            zeroed: Table::new("zeroed"),
            pieces,
        }
    }

    /// Lists an unmeasured run.
    fn add(&mut self, run: &PageRun) -> Result<(), LayoutError> {
        match &run.content {
            Content::Data(bytes) => {
                self.pieces.add(run.address, bytes);
                self.hashed.add(run.address, run.len())
            }
            Content::Zero(_) => self.zeroed.add(run.address, run.len()),
        }
    }
}

/// The pieces of the embedded runtime, hashed when it was built.
fn known_pieces() -> Option<Known<'static>> {
    #[cfg(feature = "embedded")]
    return Some(crate::embedded::known_pieces());
    #[cfg(not(feature = "embedded"))]
    None
}

fn padded(mut bytes: Vec<u8>) -> Bytes {
    bytes.resize(bytes.len().next_multiple_of(PAGE_SIZE as usize), 0);
    Bytes::from(bytes)
}

fn unmeasured(pages: Pages) -> PageRun {
    PageRun {
        address: pages.address,
        info: SecInfo::regular(pages.permissions),
        measured: false,
        content: match pages.content {
            PagesContent::Data(bytes) => Content::Data(bytes),
            PagesContent::Zero(len) => Content::Zero(len),
        },
    }
}

/// Adds the bootstrap with its header filled in; gives its entry point.
fn place_bootstrap(
    file: Bytes,
    boot: &BootHeader,
    address: u64,
    runs: &mut Vec<PageRun>,
) -> Result<u64, LayoutError> {
    // Room for more than is allowed, so that the message can say by how much it is too large.
    let room = map::IMAGE_OFFSET - map::BOOTSTRAP_OFFSET;
    let mut program = Program::load(file.clone(), address, room).map_err(LayoutError::Bootstrap)?;
    let header = program
        .object_mut(&file, HEADER_SYMBOL, BootHeader::SIZE as u64)
        .map_err(LayoutError::Bootstrap)?
        .ok_or(LayoutError::NoHeader)?;
    if header[..8] != MAGIC.to_le_bytes() {
        return Err(LayoutError::BadHeader);
    }
    header.copy_from_slice(&boot.to_bytes());
    let entry = program.entry;
    let mut total = 0;
    for pages in program.into_pages() {
        let run = PageRun {
            measured: true,
            ..unmeasured(pages)
        };
        total += run.len();
        runs.push(run);
    }
    if total > map::BOOTSTRAP_MAX {
        return Err(LayoutError::BootstrapTooLarge(total));
    }
    Ok(entry)
}

/// Adds one thread slot. Only the thread area, which the entry code reads before it wrote it, and
/// the TCS are measured.
fn thread_slot(kind: LayoutKind, index: u32, entry: u64, runs: &mut Vec<PageRun>) {
    let start = map::slot_start(kind, index);
    let writable = SecInfo::regular(SecInfo::R | SecInfo::W);
    let mut zero = |offset, len, measured| {
        let address = start + offset;
        runs.push(PageRun {
            address,
            info: writable,
            measured,
            content: Content::Zero(len),
        });
    };
    zero(slot::KERNEL_STACK, slot::KERNEL_STACK_SIZE, false);
    zero(slot::EXCEPTION_STACK, slot::EXCEPTION_STACK_SIZE, false);
    zero(slot::AREA, slot::AREA_SIZE, true);
    zero(slot::SSA, slot::SSA_SIZE, false);
    let tcs = Tcs {
        ossa: start + slot::SSA,
        nssa: map::NSSA as u32,
        oentry: entry,
        ofs_base: start + slot::AREA,
        ogs_base: start + slot::AREA,
        fs_limit: 0xfff,
        gs_limit: 0xfff,
        ..Tcs::default()
    };
    runs.push(PageRun {
        address: map::tcs_address(kind, index),
        info: SecInfo::tcs(),
        measured: true,
        content: Content::Data(Bytes::copy_from_slice(&tcs.to_bytes())),
    });
}

fn secs(config: &Config, kind: LayoutKind, options: &Options) -> Secs {
    let mut attributes = flags::MODE64BIT;
    if config.insecure.contains(&Insecure::Debug) {
        attributes |= flags::DEBUG;
    }
    if options.kss {
        attributes |= flags::KSS;
    }
    Secs {
        size: kind.elrange_size(),
        ssa_frame_size: map::SSA_FRAME_PAGES as u32,
        misc_select: if options.exinfo { misc::EXINFO } else { 0 },
        attributes: Attributes {
            flags: attributes,
            xfrm: options.xfrm | xfrm::LEGACY,
        },
        ..Secs::EMPTY
    }
}

/// MRENCLAVE of these pages in this order.
fn measure(secs: &Secs, runs: &[PageRun]) -> [u8; 32] {
    const ZERO: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];
    let mut measurement = Measurement::ecreate(secs.ssa_frame_size, secs.size);
    for run in runs {
        match &run.content {
            _ if !run.measured => {
                measurement.eadd_run(run.address, run.info, run.len() / PAGE_SIZE);
            }
            Content::Data(bytes) => {
                let (pages, _) = bytes.as_chunks();
                for (address, page) in (run.address..).step_by(PAGE_SIZE as usize).zip(pages) {
                    measurement.page(address, run.info, page);
                }
            }
            Content::Zero(_) => {
                for address in (run.address..run.end()).step_by(PAGE_SIZE as usize) {
                    measurement.page(address, run.info, &ZERO);
                }
            }
        }
    }
    measurement.finish()
}
