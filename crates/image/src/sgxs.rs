//! The SGXS stream: what is measured, in the very bytes that are hashed, plus unmeasured data in
//! records of its own ("UNMEASRD"). Fortanix' `sgxs-tools` read and write it.

use crate::layout::{Content, EnclaveImage, PageRun};
use bulla_abi::PAGE_SIZE;
use bulla_sgx::{CHUNK_SIZE, eadd_record, ecreate_record, eextend_record};
use std::io::{self, Write};

/// Tag of a 256-byte chunk that is loaded, but not measured.
const UNMEASURED: [u8; 8] = *b"UNMEASRD";

/// Writes the image as an SGXS stream. Unmeasured zero pages take 64 bytes each, others 5184.
pub fn write_sgxs(image: &EnclaveImage, out: &mut impl Write) -> io::Result<()> {
    let mut out = io::BufWriter::with_capacity(1 << 18, out);
    out.write_all(&ecreate_record(image.secs.ssa_frame_size, image.secs.size))?;
    for run in &image.runs {
        write_run(run, &mut out)?;
    }
    out.flush()
}

fn write_run(run: &PageRun, out: &mut impl Write) -> io::Result<()> {
    const ZERO: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];
    for (index, address) in (run.address..run.end())
        .step_by(PAGE_SIZE as usize)
        .enumerate()
    {
        out.write_all(&eadd_record(address, run.info))?;
        let page = match &run.content {
            Content::Data(bytes) => &bytes[index * ZERO.len()..][..ZERO.len()],
            Content::Zero(_) if run.measured => &ZERO[..],
            Content::Zero(_) => continue,
        };
        let chunks = (address..)
            .step_by(CHUNK_SIZE)
            .zip(page.chunks_exact(CHUNK_SIZE));
        for (offset, chunk) in chunks {
            let mut record = eextend_record(offset);
            if !run.measured {
                record[..8].copy_from_slice(&UNMEASURED);
            }
            out.write_all(&record)?;
            out.write_all(chunk)?;
        }
    }
    Ok(())
}
