//! Intel's DCAP quote library, loaded at run time: for the separate quoting helper only, since the
//! loader itself is static and runs where there are no libraries.
//!
//! Three functions of `sgx_dcap_ql_wrapper.h` are used. The library keeps state of its own and locks
//! inside, but its thread safety is nowhere promised, so the handle is not shared between threads.

use std::ffi::{CStr, CString, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bulla_sgx::{Report, TargetInfo};
use thiserror::Error;

/// The largest quote that is asked for, in bytes. Real ones have 4 to 6 KiB.
const QUOTE_MAX: u32 = 32 << 10;

/// Why there is no quote.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LibraryError {
    #[error("{} cannot be loaded: {reason}; apt-get install libsgx-dcap-ql", path.display())]
    Load { path: PathBuf, reason: String },
    #[error("{} is no DCAP quote library: it has no {name}", path.display())]
    Missing { path: PathBuf, name: &'static str },
    /// A `quote3_error_t`.
    #[error("the quote library fails with 0x{0:04x} (sgx_ql_lib_common.h)")]
    Refused(u32),
    #[error("the quote library wants {0} bytes for a quote, more than {QUOTE_MAX}")]
    TooLarge(u32),
}

type GetTargetInfo = unsafe extern "C" fn(*mut u8) -> u32;
type GetQuoteSize = unsafe extern "C" fn(*mut u32) -> u32;
type GetQuote = unsafe extern "C" fn(*const u8, u32, *mut u8) -> u32;

/// A loaded library. It stays loaded until the process ends: it has threads and exit handlers.
pub struct QuoteLibrary {
    target_info: GetTargetInfo,
    quote_size: GetQuoteSize,
    quote: GetQuote,
    /// Not `Send`: see above.
    _single: std::marker::PhantomData<*const ()>,
}

/// sgx_report_t and sgx_target_info_t have these alignments.
#[repr(C, align(512))]
struct Aligned<const N: usize>([u8; N]);

impl QuoteLibrary {
    /// Loads it; a name without a slash is looked for where the dynamic linker looks.
    pub fn open(path: &Path) -> Result<QuoteLibrary, LibraryError> {
        let failed = |reason: String| LibraryError::Load {
            path: path.to_owned(),
            reason,
        };
        let name = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| failed("its name contains a zero byte".into()))?;
        // SAFETY: `name` is a C string. The library's initialisers run: whoever names it trusts it.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            return Err(failed(last_error()));
        }
        let symbol = |name: &'static CStr| -> Result<*mut c_void, LibraryError> {
            // SAFETY: the handle is open, and `name` is a C string.
            let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
            if address.is_null() {
                return Err(LibraryError::Missing {
                    path: path.to_owned(),
                    name: name.to_str().unwrap_or("symbol"),
                });
            }
            Ok(address)
        };
        let target_info = symbol(c"sgx_qe_get_target_info")?;
        let quote_size = symbol(c"sgx_qe_get_quote_size")?;
        let quote = symbol(c"sgx_qe_get_quote")?;
        // SAFETY: these are the functions of those names, which have these types in every version
        // of the library (sgx_dcap_ql_wrapper.h), and it is never unloaded.
        unsafe {
            Ok(QuoteLibrary {
                target_info: std::mem::transmute::<*mut c_void, GetTargetInfo>(target_info),
                quote_size: std::mem::transmute::<*mut c_void, GetQuoteSize>(quote_size),
                quote: std::mem::transmute::<*mut c_void, GetQuote>(quote),
                _single: std::marker::PhantomData,
            })
        }
    }

    /// For whom reports must be made.
    pub fn target_info(&self) -> Result<[u8; TargetInfo::SIZE], LibraryError> {
        let mut target = Aligned([0; TargetInfo::SIZE]);
        // SAFETY: it writes a sgx_target_info_t, which is as large and aligned as this.
        check(unsafe { (self.target_info)(target.0.as_mut_ptr()) })?;
        Ok(target.0)
    }

    /// How large a quote is.
    pub fn quote_size(&self) -> Result<u32, LibraryError> {
        let mut size = 0;
        // SAFETY: it writes one uint32_t.
        check(unsafe { (self.quote_size)(&raw mut size) })?;
        if size == 0 || size > QUOTE_MAX {
            return Err(LibraryError::TooLarge(size));
        }
        Ok(size)
    }

    /// A quote over a REPORT.
    pub fn quote(&self, report: &[u8; Report::SIZE]) -> Result<Vec<u8>, LibraryError> {
        let size = self.quote_size()?;
        let report = Aligned(*report);
        let mut quote = vec![0; size as usize];
        // SAFETY: it reads a sgx_report_t, as large and aligned as this, and writes at most `size`
        // bytes, which the vector has.
        check(unsafe { (self.quote)(report.0.as_ptr(), size, quote.as_mut_ptr()) })?;
        Ok(quote)
    }
}

fn check(code: u32) -> Result<(), LibraryError> {
    match code {
        0 => Ok(()),
        code => Err(LibraryError::Refused(code)),
    }
}

fn last_error() -> String {
    // SAFETY: dlerror returns a C string of this thread's, or null.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "no reason is given".into();
    }
    // SAFETY: not null, so a C string, valid until the next call of this thread.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}
