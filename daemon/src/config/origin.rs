//! Where a setting comes from.

use std::fmt;
use std::path::{Path, PathBuf};

/// Who has said it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody.
    BuiltIn,
    /// A file.
    File {
        /// Its path.
        path: PathBuf,
        /// The line, from 1 on.
        line: usize,
    },
    /// An option of the command line.
    CommandLine,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built in"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::CommandLine => f.write_str("command line"),
        }
    }
}

/// A value, and who has said it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting<T> {
    /// What was said.
    pub value: T,
    /// By whom.
    pub origin: Origin,
}

impl<T> Setting<T> {
    pub(super) fn built_in(value: T) -> Self {
        let origin = Origin::BuiltIn;
        Self { value, origin }
    }

    pub(super) fn of_command_line(value: T) -> Self {
        let origin = Origin::CommandLine;
        Self { value, origin }
    }

    pub(super) fn of_file(value: T, path: &Path, line: usize) -> Self {
        let path = path.to_owned();
        let origin = Origin::File { path, line };
        Self { value, origin }
    }
}
