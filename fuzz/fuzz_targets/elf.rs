//! Any bytes as an executable file: what `bulla build` reads of it, and what the kernel does when it
//! is started.
#![no_main]

use std::any::Any;

use bulla_abi::sites::SiteList;
use bulla_libos::Result;
use bulla_libos::elf::{parse, script};
use bulla_libos::fs::inode::{FileId, Inode, Metadata};

struct File(Vec<u8>);

impl Inode for File {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn id(&self) -> FileId {
        FileId {
            device: 1,
            inode: 1,
        }
    }

    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn mode(&self) -> u32 {
        0o100755
    }

    fn metadata(&self) -> Metadata {
        unreachable!("the headers are all that is read")
    }

    fn read_bytes(&self, offset: u64, to: &mut [u8]) -> Result<usize> {
        let from = usize::try_from(offset).ok().and_then(|at| self.0.get(at..));
        let from = from.unwrap_or_default();
        let length = from.len().min(to.len());
        to[..length].copy_from_slice(&from[..length]);
        Ok(length)
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(list) = bulla_image::find_sites(bytes) {
        for site in &list.sites {
            assert!(site.offset < bytes.len() as u64, "outside of the file");
        }
        assert_eq!(SiteList::from_bytes(&list.to_bytes()), Some(list));
    }
    let _ = SiteList::from_bytes(bytes);
    let _ = script::parse(&bytes[..bytes.len().min(parse::HEAD)]);
    if let Ok(elf) = parse::parse(&File(bytes.to_vec())) {
        let span = elf.span();
        for segment in &elf.segments {
            let pages = segment.pages();
            assert!(pages.start <= pages.end);
            assert!(span.start <= pages.start && pages.end <= span.end);
        }
    }
});
