//! The programs of this workspace fit the layout. With the feature `embedded`.
#![cfg(feature = "embedded")]

mod common;

use bulla_abi::layout::{self as map, LayoutKind};
use bulla_image::{Options, embedded};
use std::time::Instant;

#[test]
fn both_layouts_of_the_real_programs() {
    for kind in [LayoutKind::Dynamic, LayoutKind::Static] {
        let config = common::config(64 << 20, 16);
        let start = Instant::now();
        let image = embedded::image(&config, kind, &Options::default()).unwrap();
        let time = start.elapsed();
        let bootstrap: u64 = {
            let end = kind.runtime_start() + map::IMAGE_OFFSET;
            let runs = image
                .runs
                .iter()
                .filter(|run| run.measured && run.address < end);
            runs.map(|run| run.len()).sum()
        };
        assert!(bootstrap <= map::BOOTSTRAP_MAX);
        println!(
            "{}: {} pages, {} measured, bootstrap {} KiB, {time:?}",
            kind.name(),
            image.pages(),
            image.measured_pages(),
            bootstrap >> 10
        );
        let again = embedded::image(&config, kind, &Options::default()).unwrap();
        assert_eq!(image.mrenclave, again.mrenclave);
    }
}
