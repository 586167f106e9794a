//! MRENCLAVE: SHA-256 over one 64-byte record per ECREATE, EADD and EEXTEND, and over the data
//! that EEXTEND reads (SDM 36.1, and the operation sections of the three leaves).

use crate::bytes::put;
use crate::pages::SecInfo;
use crate::{CHUNK_SIZE, PAGE_SIZE};
use sgx_isa::{MEAS_EADD, MEAS_ECREATE, MEAS_EEXTEND};
use sha2::{Digest, Sha256};

/// The record that ECREATE measures.
pub fn ecreate_record(ssa_frame_size: u32, size: u64) -> [u8; 64] {
    let mut record = [0; 64];
    put(&mut record, 0, &MEAS_ECREATE.to_le_bytes());
    put(&mut record, 8, &ssa_frame_size.to_le_bytes());
    put(&mut record, 12, &size.to_le_bytes());
    record
}

/// The record that EADD measures; `offset` is the page's distance from the enclave's base.
pub fn eadd_record(offset: u64, info: SecInfo) -> [u8; 64] {
    let mut record = [0; 64];
    put(&mut record, 0, &MEAS_EADD.to_le_bytes());
    put(&mut record, 8, &offset.to_le_bytes());
    put(&mut record, 16, &info.0.to_le_bytes());
    record
}

/// The record that EEXTEND measures, before the 256 bytes of data.
pub fn eextend_record(offset: u64) -> [u8; 64] {
    let mut record = [0; 64];
    put(&mut record, 0, &MEAS_EEXTEND.to_le_bytes());
    put(&mut record, 8, &offset.to_le_bytes());
    record
}

/// A measurement under way. The order of calls is part of the result.
#[derive(Clone)]
pub struct Measurement(Sha256);

impl Measurement {
    /// ECREATE.
    pub fn ecreate(ssa_frame_size: u32, size: u64) -> Self {
        let mut hash = Sha256::new();
        hash.update(ecreate_record(ssa_frame_size, size));
        Self(hash)
    }

    /// EADD of one page.
    pub fn eadd(&mut self, offset: u64, info: SecInfo) {
        self.0.update(eadd_record(offset, info));
    }

    /// EADD of `pages` consecutive pages that are not extended.
    pub fn eadd_run(&mut self, offset: u64, info: SecInfo, pages: u64) {
        // Several records per update: the hash takes many blocks at once faster than one by one.
        const BATCH: usize = 64;
        let mut buffer = [0u8; BATCH * 64];
        for chunk in buffer.chunks_exact_mut(64) {
            chunk.copy_from_slice(&eadd_record(0, info));
        }
        let mut page = 0;
        while page < pages {
            let count = (pages - page).min(BATCH as u64) as usize;
            for (index, record) in buffer.chunks_exact_mut(64).take(count).enumerate() {
                let at = offset + (page + index as u64) * PAGE_SIZE as u64;
                record[8..16].copy_from_slice(&at.to_le_bytes());
            }
            self.0.update(&buffer[..count * 64]);
            page += count as u64;
        }
    }

    /// EEXTEND of 256 bytes.
    pub fn eextend(&mut self, offset: u64, data: &[u8; CHUNK_SIZE]) {
        self.0.update(eextend_record(offset));
        self.0.update(data);
    }

    /// EADD and the sixteen EEXTENDs of a page.
    pub fn page(&mut self, offset: u64, info: SecInfo, data: &[u8; PAGE_SIZE]) {
        self.eadd(offset, info);
        let (chunks, _) = data.as_chunks::<CHUNK_SIZE>();
        for (index, chunk) in chunks.iter().enumerate() {
            self.eextend(offset + (index * CHUNK_SIZE) as u64, chunk);
        }
    }

    /// MRENCLAVE, as EINIT fixes it.
    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_equals_single_pages() {
        let info = SecInfo::regular(3);
        let mut run = Measurement::ecreate(4, 1 << 36);
        run.eadd_run(0x10000, info, 131);
        let mut single = Measurement::ecreate(4, 1 << 36);
        for page in 0..131 {
            single.eadd(0x10000 + page * 4096, info);
        }
        assert_eq!(run.finish(), single.finish());
    }
}
