//! The other end of the control socket: a command asks a daemon.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::control::{Answer, Question};
use super::model::Status;

/// Longer than a daemon takes for all of it.
const PATIENCE: Duration = Duration::from_secs(12);
/// More than the most open files can fill.
const LONGEST: u64 = 256 << 20;

/// Why there is no answer. Each message is one sentence for the person who asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody is there.
    #[error("no vidcompatd listens at {0}; is it running? (`--control` names another socket)")]
    NoDaemon(PathBuf),
    /// Not for this user.
    #[error("{0} is only for root")]
    Denied(PathBuf),
    /// The connection.
    #[error("vidcompatd at {path} does not answer ({source})")]
    Silent {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It says why not.
    #[error("{0}")]
    Refused(String),
    /// Another version's, or something else listens there.
    #[error("what listens at {path} does not answer as vidcompatd does ({source})")]
    Unknown {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// Asks the daemon that listens at `path` for its status.
///
/// # Errors
/// See [`AskError`].
pub fn status(path: &Path) -> Result<Status, AskError> {
    let silent = |source| AskError::Silent {
        path: path.to_owned(),
        source,
    };
    let mut stream = UnixStream::connect(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AskError::NoDaemon(path.to_owned()),
        io::ErrorKind::PermissionDenied => AskError::Denied(path.to_owned()),
        _ => silent(error),
    })?;
    let unknown = |source| AskError::Unknown {
        path: path.to_owned(),
        source,
    };
    let mut question = serde_json::to_vec(&Question::Status).map_err(unknown)?;
    question.push(b'\n');
    let mut answer = Vec::new();
    let asked = stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
        .and_then(|()| stream.write_all(&question))
        .and_then(|()| (&mut stream).take(LONGEST).read_to_end(&mut answer));
    asked.map_err(silent)?;
    match serde_json::from_slice(&answer).map_err(unknown)? {
        Answer::Status(status) => Ok(status),
        Answer::Error(reason) => Err(AskError::Refused(reason)),
    }
}

#[cfg(test)]
mod tests {
    use super::{AskError, status};
    use std::path::Path;

    #[test]
    fn where_nobody_listens_that_is_said() {
        let error = status(Path::new("/nowhere/control.sock")).expect_err("no daemon");
        assert!(matches!(error, AskError::NoDaemon(_)));
        assert!(
            error
                .to_string()
                .starts_with("no vidcompatd listens at /nowhere/control.sock")
        );
    }
}
