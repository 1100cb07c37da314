//! The other end of the control socket: a command asks a daemon.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::Error as _;

use super::control::{Answer, Question};
use super::model::Status;
use crate::backend::framebuffer::Picture;

/// Longer than a daemon is silent, and takes to be rid of its answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// More than the most open files can fill, and the largest screen (16384 x 16384).
const LONGEST: u64 = 1 << 30;

/// Why there is no answer. Each message is one sentence for the person who asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody is there.
    #[error("no vidcompatd listens at {0}; is it running? (`--control` names another socket)")]
    NoDaemon(PathBuf),
    /// The same of metrics.
    #[error("no vidcompatd gives metrics at {0}; is it running? (`--metrics` names another socket)")]
    NoMetrics(PathBuf),
    /// Not for this user, who is in none of the groups.
    #[error("{0} is only for root and the group {1}")]
    DeniedGroup(PathBuf, &'static str),
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
    let unknown = |source| AskError::Unknown {
        path: path.to_owned(),
        source,
    };
    match ask(path, &Question::Status)? {
        (Answer::Status(status), _) => Ok(status),
        (Answer::Error(reason), _) => Err(AskError::Refused(reason)),
        (Answer::Picture { .. }, _) => Err(unknown(serde_json::Error::custom("a picture for a status"))),
    }
}

/// Asks it what is to be seen on the framebuffer `fb`, or on the only one: the path of its node, and the picture.
///
/// # Errors
/// See [`AskError`].
pub fn picture(path: &Path, fb: Option<&str>) -> Result<(String, Picture), AskError> {
    let unknown = |what: &str| AskError::Unknown {
        path: path.to_owned(),
        source: serde_json::Error::custom(what),
    };
    let question = Question::Screenshot {
        fb: fb.map(str::to_owned),
    };
    match ask(path, &question)? {
        (Answer::Picture { node, width, height }, rgb) => {
            let picture = Picture { width, height, rgb };
            match picture.is_whole() {
                true => Ok((node, picture)),
                false => Err(unknown("a picture with other bytes than it says")),
            }
        }
        (Answer::Error(reason), _) => Err(AskError::Refused(reason)),
        (Answer::Status(_), _) => Err(unknown("a status for a picture")),
    }
}

/// The answer, and what comes behind its line.
fn ask(path: &Path, question: &Question) -> Result<(Answer, Vec<u8>), AskError> {
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
    let mut question = serde_json::to_vec(question).map_err(unknown)?;
    question.push(b'\n');
    let (mut line, mut rest) = (Vec::new(), Vec::new());
    let asked = stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
        .and_then(|()| stream.write_all(&question))
        .and_then(|()| {
            let mut answer = BufReader::new((&mut stream).take(LONGEST));
            answer.read_until(b'\n', &mut line)?;
            answer.read_to_end(&mut rest)
        });
    asked.map_err(silent)?;
    let answer = serde_json::from_slice(&line).map_err(unknown)?;
    Ok((answer, rest))
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
