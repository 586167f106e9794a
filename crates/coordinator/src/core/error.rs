//! Why a request is refused.

/// An error with the kind that its answer depends on. The text is for the requester.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("server is not in expected state")]
    WrongState,
    #[error("{0}")]
    BadRequest(String),
    #[error("{0}")]
    Unauthorized(String),
    #[error("{0}")]
    Forbidden(String),
    #[error("{0}")]
    NotFound(String),
    /// The request is well-formed, but what it asks for cannot be.
    #[error("{0}")]
    Refused(String),
    /// Other replicas were faster, again and again.
    #[error("another replica changed the state at the same time: try again")]
    Conflict,
    #[error("{0}")]
    Internal(String),
}

impl From<crate::manifest::ManifestError> for Error {
    fn from(error: crate::manifest::ManifestError) -> Error {
        Error::Refused(error.to_string())
    }
}

impl From<crate::secrets::SecretError> for Error {
    fn from(error: crate::secrets::SecretError) -> Error {
        Error::Refused(error.to_string())
    }
}

impl From<crate::keys::KeyError> for Error {
    fn from(error: crate::keys::KeyError) -> Error {
        Error::Internal(error.to_string())
    }
}

impl From<crate::store::StoreError> for Error {
    fn from(error: crate::store::StoreError) -> Error {
        match error {
            crate::store::StoreError::Conflict => Error::Conflict,
            error => Error::Internal(error.to_string()),
        }
    }
}

impl From<crate::recovery::RecoveryError> for Error {
    fn from(error: crate::recovery::RecoveryError) -> Error {
        Error::Refused(error.to_string())
    }
}
