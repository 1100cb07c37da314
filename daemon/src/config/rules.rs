//! `[[device]]`: which devices an entry is about, and what is to become of them.
//!
//! `all` is every node that has a device: hardware, and what stands for it on a bus of its own (vivid, vim2m). A node without
//! one, such as v4l2loopback's, is a program's end of a pipe: the program at the other end decides what goes through it, no
//! driver of it has ever taken or refused anybody's memory by itself, and a second node of each would stand in every list of
//! cameras. It is served where an entry names it by path, driver or card.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::Error;

use super::origin::Origin;

/// How a device is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// The real node stays, ours stands beside it.
    #[default]
    Side,
    /// Ours has the real one's name.
    Takeover,
    /// Not at all.
    Off,
}

impl Way {
    /// As the files say it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Side => "side",
            Self::Takeover => "takeover",
            Self::Off => "off",
        }
    }
}

/// What an entry asks about a device.
pub trait Kinship {
    /// `/dev/videoN`, also where ours has that name.
    fn path(&self) -> &Path;
    /// Is there a device behind it, and not only a program?
    fn is_hardware(&self) -> bool;
    /// The driver, as QUERYCAP names it.
    fn driver(&self) -> &str;
    /// The card, as QUERYCAP names it.
    fn card(&self) -> &str;
}

/// What a device is served with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// May clients' memory be exchanged for the device's?
    pub adopt: bool,
    /// May its buffers come from the dma-heap?
    pub dma_heap: bool,
}

/// What is to become of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<'a> {
    /// How it is served.
    pub way: Way,
    /// With what.
    pub choice: Choice,
    /// Who has said so.
    pub origin: &'a Origin,
}

/// Which devices: all that is said must be so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Match {
    path: Option<PathBuf>,
    driver: Option<String>,
    card: Option<String>,
}

impl Match {
    fn is_empty(&self) -> bool {
        self.path.is_none() && self.driver.is_none() && self.card.is_none()
    }

    fn fits(&self, device: &dyn Kinship) -> bool {
        let is_path = |path: &PathBuf| {
            // A link such as those of /dev/v4l/by-id; it leads to the name, whoever has that name.
            path == device.path()
                || std::fs::canonicalize(path).is_ok_and(|followed| followed == device.path())
        };
        self.path.as_ref().is_none_or(is_path)
            && self
                .driver
                .as_ref()
                .is_none_or(|glob| fits_glob(glob, device.driver()))
            && self
                .card
                .as_ref()
                .is_none_or(|glob| fits_glob(glob, device.card()))
    }
}

/// One `[[device]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    all: bool,
    which: Match,
    exclude: Vec<Match>,
    pub(super) way: Way,
    pub(super) adopt: Option<bool>,
    pub(super) dma_heap: bool,
}

impl DeviceRule {
    /// A side node for all hardware: what holds where nobody says anything.
    pub(super) fn everything() -> Self {
        Self {
            all: true,
            which: Match::default(),
            exclude: Vec::new(),
            way: Way::Side,
            adopt: None,
            dma_heap: true,
        }
    }

    /// A side node for what is at `path`.
    pub(super) fn at(path: &Path) -> Self {
        let path = Some(path.to_owned());
        Self {
            all: false,
            which: Match {
                path,
                ..Match::default()
            },
            ..Self::everything()
        }
    }

    /// Is it about this device?
    #[must_use]
    pub fn fits(&self, device: &dyn Kinship) -> bool {
        let fits = match self.all {
            true => device.is_hardware(),
            false => self.which.fits(device),
        };
        fits && !self.exclude.iter().any(|exclude| exclude.fits(device))
    }

    /// What it says of `adopt`.
    #[must_use]
    pub fn adopt(&self) -> Option<bool> {
        self.adopt
    }

    /// The path that it is about, if it is about one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.which.path.as_deref()
    }
}

/// An entry as the file has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Entry {
    #[serde(default)]
    all: bool,
    path: Option<PathBuf>,
    driver: Option<String>,
    card: Option<String>,
    #[serde(default)]
    exclude: Vec<Match>,
    #[serde(default)]
    way: Way,
    adopt: Option<bool>,
    dma_heap: Option<bool>,
}

impl<'de> Deserialize<'de> for DeviceRule {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let entry = Entry::deserialize(deserializer)?;
        let which = Match {
            path: entry.path,
            driver: entry.driver,
            card: entry.card,
        };
        if entry.all != which.is_empty() {
            let wrong = match entry.all {
                true => "`all` is every device: `path`, `driver` and `card` belong in an entry of their own",
                false => "which device? `path`, `driver`, `card` or `all = true` says it",
            };
            return Err(D::Error::custom(wrong));
        }
        let relative = [&which].into_iter().chain(&entry.exclude).find_map(|each| {
            let path = each.path.as_deref()?;
            (!path.starts_with("/dev")).then_some(path)
        });
        if let Some(path) = relative {
            return Err(D::Error::custom(format!(
                "`{}` is no path below /dev, such as /dev/video0 or a link in /dev/v4l/by-id",
                path.display()
            )));
        }
        if entry.exclude.iter().any(Match::is_empty) {
            return Err(D::Error::custom(
                "an exclusion says which: { path = ... }, { driver = ... } or { card = ... }",
            ));
        }
        Ok(Self {
            all: entry.all,
            which,
            exclude: entry.exclude,
            way: entry.way,
            adopt: entry.adopt,
            dma_heap: entry.dma_heap.unwrap_or(true),
        })
    }
}

/// Is `text` what `glob` says, in which `*` is anything?
fn fits_glob(glob: &str, text: &str) -> bool {
    let mut parts = glob.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        // The earliest place leaves most for what follows.
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::fits_glob;

    #[test]
    fn a_star_is_anything_and_everything_else_is_itself() {
        for (glob, text) in [
            ("uvcvideo", "uvcvideo"),
            ("*", ""),
            ("*", "x"),
            ("HD *", "HD Webcam"),
            ("*Webcam*", "HD Webcam: HD"),
            ("a*b*c", "a b b c"),
            ("a*a", "aa"),
        ] {
            assert!(fits_glob(glob, text), "{glob} {text}");
        }
        for (glob, text) in [
            ("uvc", "uvcvideo"),
            ("", "x"),
            ("HD *", "hd Webcam"),
            ("a*a", "a"),
            ("*b*c", "cb"),
            ("[a]", "a"),
        ] {
            assert!(!fits_glob(glob, text), "{glob} {text}");
        }
    }
}
