//! `bulla-start`, the entry point of confidential images.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    bulla_cli::main_of_image()
}
