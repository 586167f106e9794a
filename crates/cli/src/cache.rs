//! `bulla cache`: what the cache takes, and making it smaller.

use crate::failure::Failure;
use crate::workload::parse_bytes;
use bulla_oci::Cache;
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum Arguments {
    /// Say what the cache takes on disk
    Show {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove what can be made again, least recently used first; named images stay
    Prune {
        /// Stop when the cache takes no more than this, as 4G [default: remove all that can go]
        #[arg(long, value_name = "SIZE")]
        keep: Option<String>,
    },
}

/// The size above which a newly built root file system makes others go.
const LIMIT: u64 = 20 << 30;

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let cache = Cache::of_user()?;
    match arguments {
        Arguments::Show { json: true } => crate::print_json(&cache.usage()),
        Arguments::Show { json: false } => {
            let usage = cache.usage();
            let line = |what: &str, bytes: u64| format!("{what:<24}{:>8} MiB\n", bytes >> 20);
            let lines = [
                line("named images", usage.images),
                line("root file systems", usage.rootfs),
                line("unpacked images", usage.built),
                line("other", usage.other),
                line("total", usage.total()),
            ];
            crate::print(&format!("{}\n{}", cache.dir().display(), lines.concat()))
        }
        Arguments::Prune { keep } => {
            let most = keep.as_deref().map(parse_bytes).transpose()?.unwrap_or(0);
            let freed = cache.prune(most)?;
            crate::print(&format!("{} MiB freed\n", freed >> 20))
        }
    }
}

/// After a root file system was added: the limit of BULLA_CACHE_LIMIT, or 20 GiB. That something
/// cannot be removed is no reason not to start a container.
pub fn bound(cache: &Cache) {
    let limit = match std::env::var("BULLA_CACHE_LIMIT") {
        Ok(text) => parse_bytes(&text).unwrap_or_else(|failure| {
            eprintln!("bulla: warning: BULLA_CACHE_LIMIT: {failure}; 20G holds");
            LIMIT
        }),
        Err(_) => LIMIT,
    };
    let _ = cache.prune(limit);
}
