//! `bulla`, the command.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    bulla_cli::main()
}
