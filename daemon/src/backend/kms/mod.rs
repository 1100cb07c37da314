//! A graphics card's screen by KMS, for framebuffers of our own.

use std::path::Path;

use super::output::Output;

/// Why a card cannot be used. Each message is one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum KmsError {
    /// It cannot be opened.
    #[error("{0}: {1}")]
    Card(String, std::io::Error),
}

/// The first connected screen of the card at `path` (a primary node, /dev/dri/cardN). Shows nothing yet.
///
/// # Errors
/// See [`KmsError`].
pub fn open(path: &Path) -> Result<Box<dyn Output>, KmsError> {
    Err(KmsError::Card(
        path.display().to_string(),
        std::io::ErrorKind::Unsupported.into(),
    ))
}
