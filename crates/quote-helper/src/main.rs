//! `bulla-quote-helper [--library PATH] [--socket PATH]`: makes quotes for machines that have Intel's
//! DCAP quote library but no AESM.
//!
//! `bulla` is static and runs in images without any library, so it asks a service: AESM where there
//! is one, else this program, which loads the library and speaks the same protocol. Only this program
//! needs /dev/sgx_provision. It is linked dynamically, since it loads a library.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bulla_attest::AESM_SOCKET;
use bulla_attest::aesm_server::{QuotingLibrary, serve};
use bulla_loader::{LibraryError, QuoteLibrary};
use bulla_sgx::{Report, TargetInfo};

const LIBRARY: &str = "libsgx_dcap_ql.so.1";
const USAGE: &str = "usage: bulla-quote-helper [--library PATH] [--socket PATH]

Serves Intel's DCAP quote library (libsgx_dcap_ql.so.1) by AESM's protocol at
/var/run/aesmd/aesm.socket, where bulla looks for it.";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("bulla-quote-helper: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let (mut library, mut socket) = (PathBuf::from(LIBRARY), PathBuf::from(AESM_SOCKET));
    let mut words = std::env::args_os().skip(1);
    while let Some(word) = words.next() {
        let place = match word.to_str() {
            Some("--library") => &mut library,
            Some("--socket") => &mut socket,
            Some("--help") => {
                println!("{USAGE}");
                return Ok(());
            }
            _ => return Err(USAGE.into()),
        };
        *place = words.next().ok_or(USAGE)?.into();
    }
    let library = QuoteLibrary::open(&library).map_err(|error| error.to_string())?;
    let listener = listen(&socket)?;
    eprintln!("bulla-quote-helper: serving at {}", socket.display());
    serve(&listener, &Served(library)).map_err(|error| error.to_string())
}

/// Takes the place of a socket that nobody serves any more, and of nothing else.
fn listen(socket: &Path) -> Result<UnixListener, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", socket.display());
    if let Ok(metadata) = fs::symlink_metadata(socket) {
        if !metadata.file_type().is_socket() {
            return Err(format!(
                "{}: there is a file of that name",
                socket.display()
            ));
        }
        if UnixStream::connect(socket).is_ok() {
            return Err(format!(
                "{}: a service answers there already",
                socket.display()
            ));
        }
        fs::remove_file(socket).map_err(failed)?;
    }
    if let Some(directory) = socket.parent() {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    let listener = UnixListener::bind(socket).map_err(failed)?;
    // As aesmd's: whoever may start an enclave may have it quoted.
    fs::set_permissions(socket, fs::Permissions::from_mode(0o777)).map_err(failed)?;
    Ok(listener)
}

struct Served(QuoteLibrary);

/// AESM's code for the library's, which is written down.
fn code(error: LibraryError) -> u32 {
    eprintln!("bulla-quote-helper: {error}");
    // quote3_error_t (sgx_ql_lib_common.h) to aesm_error_t (aesm_error.h), as aesmd translates.
    match error {
        LibraryError::Refused(0xe002) => 3,
        LibraryError::Refused(0xe003) => 21,
        LibraryError::Refused(0xe004) => 32,
        LibraryError::Refused(0xe005) => 33,
        LibraryError::Refused(0xe006) => 15,
        LibraryError::Refused(library @ 0xe007..=0xe011) => library - 0xe007 + 34,
        LibraryError::Refused(0xe012) => 29,
        LibraryError::Refused(library @ 0xe013..=0xe018) => library - 0xe013 + 45,
        LibraryError::Refused(0xe019) => 12,
        LibraryError::Refused(0xe01a) => 22,
        _ => 1,
    }
}

impl QuotingLibrary for Served {
    fn target_info(&self) -> Result<[u8; TargetInfo::SIZE], u32> {
        self.0.target_info().map_err(code)
    }

    fn quote_size(&self) -> Result<u32, u32> {
        self.0.quote_size().map_err(code)
    }

    fn quote(&self, report: &[u8; Report::SIZE]) -> Result<Vec<u8>, u32> {
        self.0.quote(report).map_err(code)
    }
}
