//! How bulla itself fails: one line, and the exit code that container engines use.

use std::fmt;

/// Bulla's own error, as with Docker.
pub const BULLA_FAILED: u8 = 125;

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    pub code: u8,
    pub message: String,
    /// Somebody else did not answer, or refused: it may be different next time.
    pub is_remote: bool,
}

impl Failure {
    /// An error of bulla's (exit code 125).
    pub fn new(message: impl fmt::Display) -> Failure {
        Failure {
            code: BULLA_FAILED,
            message: message.to_string(),
            is_remote: false,
        }
    }
}

impl Failure {
    /// An error with another exit code.
    pub fn with_code(code: u8, message: impl fmt::Display) -> Failure {
        Failure {
            code,
            message: message.to_string(),
            is_remote: false,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

macro_rules! failure_from {
    ($($error:ty),*) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Failure {
                Failure::new(error)
            }
        })*
    };
}

impl From<bulla_oci::Error> for Failure {
    fn from(error: bulla_oci::Error) -> Failure {
        use bulla_oci::Error::{Engine, Registry};
        Failure {
            is_remote: matches!(error, Registry { .. } | Engine { .. }),
            ..Failure::new(error)
        }
    }
}

failure_from!(
    bulla_image::LayoutError,
    bulla_image::SignError,
    bulla_image::KeyError,
    bulla_image::manifest::ManifestError,
    bulla_loader::Error
);
