//! One file: its text into settings, a mistake into a sentence with file, line and key.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::Config;
use super::origin::Setting;
use super::rules::DeviceRule;
use super::values::{Size, Socket, Text};
use crate::devices::FbSource;
use crate::resolve::Rule;

/// What is wrong with a file. Each message is one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("{path} cannot be read ({source})")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Its text is wrong.
    #[error("{path}:{line}: {}{message}", .key.as_ref().map(|key| format!("`{key}`: ")).unwrap_or_default())]
    Text {
        /// The file.
        path: PathBuf,
        /// The line, from 1 on.
        line: usize,
        /// The key, with that of its table.
        key: Option<String>,
        /// What is wrong.
        message: String,
    },
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct File {
    adopt: Option<Spanned<bool>>,
    socket: Sockets,
    memory: Memory,
    import: Import,
    device: Vec<Spanned<DeviceRule>>,
    framebuffer: Vec<Framebuffer>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct Sockets {
    control: Option<Spanned<Text<Socket>>>,
    shim: Option<Spanned<Text<Socket>>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct Memory {
    per_client: Option<Spanned<Text<Size>>>,
    total: Option<Spanned<Text<Size>>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct Import {
    rules: Vec<Spanned<Text<Rule>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Framebuffer {
    what: Spanned<Text<FbSource>>,
}

/// A file that is being read.
struct Reading<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Reading<'_> {
    /// What is said here is the setting from now on.
    fn over<T, V>(&self, setting: &mut Setting<V>, said: Option<Spanned<T>>, value: impl FnOnce(T) -> V) {
        if let Some(said) = said {
            *setting = self.setting(said, value);
        }
    }

    fn setting<T, V>(&self, said: Spanned<T>, value: impl FnOnce(T) -> V) -> Setting<V> {
        let line = line_of(self.text, said.span().start);
        Setting::of_file(value(said.into_inner()), self.path, line)
    }
}

/// Puts what `text` says over what `config` has; `path` is its file.
pub(super) fn apply(path: &Path, text: &str, config: &mut Config) -> Result<(), FileError> {
    let file: File = toml::from_str(text).map_err(|error| mistake(path, text, &error))?;
    let reading = Reading { path, text };
    reading.over(&mut config.adopt, file.adopt, |adopt| adopt);
    reading.over(&mut config.control, file.socket.control, |said| said.0.0);
    reading.over(&mut config.shim_socket, file.socket.shim, |said| said.0.0);
    reading.over(&mut config.memory_per_client, file.memory.per_client, |said| {
        said.0.0
    });
    reading.over(&mut config.memory_total, file.memory.total, |said| said.0.0);
    let rules = file.import.rules.into_iter();
    config
        .imports
        .extend(rules.map(|said| reading.setting(said, |rule| rule.0)));
    let devices = file.device.into_iter();
    config
        .devices
        .extend(devices.map(|said| reading.setting(said, |device| device)));
    let framebuffers = file.framebuffer.into_iter();
    config
        .framebuffers
        .extend(framebuffers.map(|said| reading.setting(said.what, |what| what.0)));
    Ok(())
}

/// The line of the byte at `at`, from 1 on.
fn line_of(text: &str, at: usize) -> usize {
    let before = text.as_bytes().iter().take(at);
    1 + before.filter(|byte| **byte == b'\n').count()
}

fn mistake(path: &Path, text: &str, error: &toml::de::Error) -> FileError {
    let at = error.span().map_or(0, |span| span.start);
    let line = line_of(text, at);
    // Some of the parser's messages have a second line with what it had expected.
    let message = error.message().trim().replace('\n', "; ");
    FileError::Text {
        path: path.to_owned(),
        line,
        key: key_of(text, line),
        message,
    }
}

/// The key of what stands in this line, with that of its table: `device.way`.
fn key_of(text: &str, line: usize) -> Option<String> {
    let mut key = None;
    // From the line upwards: the first key is the value's, the first table the key's.
    let lines: Vec<&str> = text.lines().take(line).collect();
    for line in lines.iter().rev() {
        let line = line.trim();
        if let Some(table) = line.strip_prefix('[').map(|rest| rest.trim_start_matches('['))
            && let Some((table, _)) = table.split_once(']')
            && is_key(table.trim())
        {
            return Some(match key {
                Some(key) => format!("{}.{key}", table.trim()),
                None => table.trim().to_owned(),
            });
        }
        if key.is_none()
            && let Some((left, _)) = line.split_once('=')
            && is_key(left.trim())
        {
            key = Some(left.trim().to_owned());
        }
    }
    key
}

fn is_key(text: &str) -> bool {
    let of_key = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'"');
    !text.is_empty() && text.bytes().all(of_key)
}
