//! What the operator wants: from files and from the command line, each setting with the place that it comes from.
//!
//! `/etc/vidcompat/vidcompat.toml` is read first, then the drop-ins `*.toml` of `vidcompat.toml.d` beside it and below
//! `/usr/lib`, in the order of their names; a drop-in in `/etc` replaces the one of the same name in `/usr/lib`, and one that
//! is empty or a link to /dev/null takes it out, as with systemd. A later file's setting replaces an earlier one's; of
//! `[[device]]`, `[[framebuffer]]` and `import.rules`, which are lists, all files' entries count, in their order. The command
//! line comes last.
//!
//! It knows nothing of the machine: what of it is there is for [`crate::service`] to find out.

mod file;
mod layers;
mod origin;
mod rules;
mod values;

use std::path::{Path, PathBuf};

use crate::cli::Options;
use crate::devices::FbSource;
use crate::resolve::Rule;

pub use file::FileError;
pub use layers::DEFAULT_PATH;
pub use origin::{Origin, Setting};
pub use rules::{Choice, Decision, DeviceRule, Kinship, Way};

/// Everything that can be said, with what holds where nothing is said.
#[derive(Clone, Debug)]
pub struct Config {
    /// The control socket, or `none`.
    pub control: Setting<PathBuf>,
    /// The shim's socket, or `none`.
    pub shim_socket: Setting<PathBuf>,
    /// Bytes that the buffers of one client may take.
    pub memory_per_client: Setting<u64>,
    /// Bytes that those of all clients may take.
    pub memory_total: Setting<u64>,
    /// May clients' memory be exchanged for the device's, where a device's own entry says nothing?
    pub adopt: Setting<bool>,
    /// What may be imported where; the last that fits counts.
    pub imports: Vec<Setting<Rule>>,
    /// Which devices are served, and how; the last that fits counts.
    pub devices: Vec<Setting<DeviceRule>>,
    /// Framebuffers to serve.
    pub framebuffers: Vec<Setting<FbSource>>,
    /// The devices are given one by one on the command line: one that is missing then is an error.
    pub strict: bool,
}

impl Config {
    /// What holds where nobody has said anything.
    fn built_in() -> Self {
        let path = |path: &str| Setting::built_in(PathBuf::from(path));
        Self {
            control: path(crate::observe::CONTROL),
            shim_socket: path(crate::cli::SHIM_SOCKET),
            memory_per_client: Setting::built_in(512 << 20),
            memory_total: Setting::built_in(values::quarter_of_memory()),
            adopt: Setting::built_in(true),
            imports: Vec::new(),
            devices: vec![Setting::built_in(DeviceRule::everything())],
            framebuffers: Vec::new(),
            strict: false,
        }
    }

    /// What the files say that `options` names, if it names any, and over that what `options` says itself.
    ///
    /// # Errors
    /// See [`FileError`].
    pub fn of(options: &Options) -> Result<Self, FileError> {
        let mut config = Self::built_in();
        match &options.config {
            Some(path) => layers::read(path, &mut config)?,
            None => config.devices.clear(),
        }
        config.command_line(options);
        Ok(config)
    }

    fn command_line(&mut self, options: &Options) {
        fn over<T: Clone>(setting: &mut Setting<T>, given: Option<&T>) {
            if let Some(value) = given {
                *setting = Setting::of_command_line(value.clone());
            }
        }
        over(&mut self.control, options.control.as_ref());
        over(&mut self.shim_socket, options.shim_socket.as_ref());
        over(&mut self.memory_per_client, options.memory_per_client.as_ref());
        over(&mut self.memory_total, options.memory_total.as_ref());
        over(&mut self.adopt, options.adopt.as_ref());
        let rules = options.imports.iter().cloned();
        self.imports.extend(rules.map(Setting::of_command_line));
        if !options.devices.is_empty() || !options.framebuffers.is_empty() {
            let devices = options.devices.iter().map(|path| DeviceRule::at(path));
            self.devices = devices.map(Setting::of_command_line).collect();
            let framebuffers = options.framebuffers.iter().cloned();
            self.framebuffers = framebuffers.map(Setting::of_command_line).collect();
            self.strict = true;
        }
    }

    /// Where the control socket is to be, if there is to be one.
    #[must_use]
    pub fn control(&self) -> Option<&Path> {
        wanted(&self.control)
    }

    /// Where the shim's socket is to be, if there is to be one.
    #[must_use]
    pub fn shim_socket(&self) -> Option<&Path> {
        wanted(&self.shim_socket)
    }

    /// What is to become of a device: the last entry that fits says it. None fits: it is left alone.
    #[must_use]
    pub fn decide(&self, device: &dyn Kinship) -> Option<Decision<'_>> {
        let entry = self.devices.iter().rev().find(|entry| entry.value.fits(device))?;
        Some(Decision {
            way: entry.value.way,
            choice: Choice {
                adopt: entry.value.adopt.unwrap_or(self.adopt.value),
                dma_heap: entry.value.dma_heap,
            },
            origin: &entry.origin,
        })
    }
}

fn wanted(setting: &Setting<PathBuf>) -> Option<&Path> {
    Some(&*setting.value).filter(|path| *path != Path::new("none"))
}

#[cfg(test)]
mod tests;
