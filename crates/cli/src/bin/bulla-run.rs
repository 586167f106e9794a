//! `bulla-run`, the part of `bulla` that starts images which are known already.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    bulla_cli::main_of_run()
}
