//! Which files there are, in which order.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Config;
use super::file::{FileError, apply};

/// Where the configuration is.
pub const DEFAULT_PATH: &str = "/etc/vidcompat/vidcompat.toml";
/// Where packages put drop-ins, for [`DEFAULT_PATH`] only.
const OF_PACKAGES: &str = "/usr/lib/vidcompat/vidcompat.toml.d";

/// Puts over `config` what the file at `path` says and its drop-ins. There need be none at [`DEFAULT_PATH`].
pub(super) fn read(path: &Path, config: &mut Config) -> Result<(), FileError> {
    let is_default = path == Path::new(DEFAULT_PATH);
    match fs::read_to_string(path) {
        Ok(text) => apply(path, &text, config)?,
        Err(error) if is_default && error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(unread(path, source)),
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".d");
    let of_packages = is_default.then(|| PathBuf::from(OF_PACKAGES));
    for (_, path) in drop_ins(of_packages.into_iter().chain([name.into()]))? {
        let text = fs::read_to_string(&path).map_err(|source| unread(&path, source))?;
        apply(&path, &text, config)?;
    }
    Ok(())
}

fn unread(path: &Path, source: io::Error) -> FileError {
    FileError::Read {
        path: path.to_owned(),
        source,
    }
}

/// The `*.toml` of these folders by their names; of two with the same name the later folder's.
pub(super) fn drop_ins(
    folders: impl Iterator<Item = PathBuf>,
) -> Result<BTreeMap<OsString, PathBuf>, FileError> {
    let mut files = BTreeMap::new();
    for folder in folders {
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(|source| unread(&folder, source))?,
        };
        for entry in entries {
            let path = entry.map_err(|source| unread(&folder, source))?.path();
            let is_hidden = |name: &OsStr| name.as_encoded_bytes().starts_with(b".");
            if let Some(name) = path.file_name().filter(|name| !is_hidden(name))
                && path.extension() == Some(OsStr::new("toml"))
            {
                files.insert(name.to_owned(), path);
            }
        }
    }
    Ok(files)
}
