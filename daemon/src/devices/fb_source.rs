//! What the operator says a framebuffer is made of: `--fb`.

use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where a framebuffer comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FbSource {
    /// A real `/dev/fbN`.
    Real(PathBuf),
    /// One that we make.
    Own(Own),
}

/// A framebuffer that we make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// The card on whose screen it is shown (`/dev/dri/cardN`); `None`: nowhere.
    pub card: Option<PathBuf>,
    /// Which of the card's screens, e.g. `HDMI-A-1`; `None`: the first that has a monitor.
    pub connector: Option<String>,
    /// Pixels and lines to begin with; `None`: the screen's best.
    pub size: Option<(u32, u32)>,
    /// Bits per pixel to begin with.
    pub depth: u32,
    /// May programs draw straight into memory that is shown?
    pub direct: bool,
    /// Does the picture stay when the last program has gone? `None`: where no console would come back.
    pub keep: Option<bool>,
    /// The N of `/dev/fbN`, where it is not to be found out.
    pub number: Option<u32>,
}

impl Default for Own {
    fn default() -> Self {
        Self {
            card: None,
            connector: None,
            size: None,
            depth: 32,
            direct: true,
            keep: None,
            number: None,
        }
    }
}

/// Numbers that a framebuffer of ours may be given: as many as the kernel has (`FB_MAX`, linux/fb.h).
pub(super) const NUMBERS: u32 = 32;

/// Largest side of a framebuffer: what `fb_var_screeninfo` and DRM drivers can say without overflowing.
const LONGEST_SIDE: u32 = 16384;

impl FromStr for FbSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let first = parts.next().unwrap_or_default();
        let mut own = match (first.strip_prefix("kms:"), first.strip_prefix("memory:")) {
            (Some(""), _) => return Err("which card? `kms:/dev/dri/card0`".to_owned()),
            (Some(card), _) => Own {
                card: Some(card.into()),
                ..Own::default()
            },
            (None, Some(geometry)) => {
                let (size, depth) = geometry_of(geometry)
                    .ok_or_else(|| format!("`{geometry}` is no size such as 1024x768x32"))?;
                Own {
                    size: Some(size),
                    depth,
                    ..Own::default()
                }
            }
            (None, None) if parts.next().is_none() && !first.is_empty() => {
                return Ok(Self::Real(first.into()));
            }
            (None, None) => {
                return Err(format!(
                    "`{text}` is neither /dev/fbN nor kms:/dev/dri/cardN nor memory:WIDTHxHEIGHTxBITS"
                ));
            }
        };
        for option in parts {
            set(&mut own, option)?;
        }
        Ok(Self::Own(own))
    }
}

fn set(own: &mut Own, option: &str) -> Result<(), String> {
    let on_card = own.card.is_some();
    match option.split_once('=').unwrap_or((option, "")) {
        ("as", number) => {
            let number = number.parse().ok().filter(|number| *number < NUMBERS);
            own.number = Some(number.ok_or(format!("`{option}`: /dev/fb0 to /dev/fb{}", NUMBERS - 1))?);
        }
        ("connector", name) if on_card && !name.is_empty() => own.connector = Some(name.to_owned()),
        ("size", size) if on_card => {
            let size = sides(size).ok_or_else(|| format!("`{option}` is no size such as size=640x480"))?;
            own.size = Some(size);
        }
        ("depth", depth) if on_card => {
            own.depth = depth_of(depth).ok_or_else(|| format!("`{option}`: 8, 16, 24 or 32 bits"))?;
        }
        ("shadow", "") if on_card => own.direct = false,
        ("keep", "") if on_card => own.keep = Some(true),
        ("give-back", "") if on_card => own.keep = Some(false),
        _ => {
            let known = match on_card {
                true => "as=N, connector=NAME, size=WxH, depth=BITS, shadow, keep, give-back",
                false => "as=N",
            };
            return Err(format!("`{option}` is none of its options: {known}"));
        }
    }
    Ok(())
}

fn sides(text: &str) -> Option<(u32, u32)> {
    let (width, height) = text.split_once('x')?;
    let side = |text: &str| text.parse().ok().filter(|side| (1..=LONGEST_SIDE).contains(side));
    Some((side(width)?, side(height)?))
}

fn depth_of(text: &str) -> Option<u32> {
    text.parse()
        .ok()
        .filter(|depth| matches!(depth, 8 | 16 | 24 | 32))
}

fn geometry_of(text: &str) -> Option<((u32, u32), u32)> {
    let (size, depth) = text.rsplit_once('x')?;
    Some((sides(size)?, depth_of(depth)?))
}

impl FbSource {
    /// As people name it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Real(path) => path.display().to_string(),
            Self::Own(Own { card: Some(card), .. }) => format!("kms:{}", card.display()),
            Self::Own(Own { size, depth, .. }) => {
                let (width, height) = size.unwrap_or_default();
                format!("memory:{width}x{height}x{depth}")
            }
        }
    }

    /// The card, of a framebuffer that is made on one.
    #[must_use]
    pub fn card(&self) -> Option<&Path> {
        match self {
            Self::Own(own) => own.card.as_deref(),
            Self::Real(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FbSource, Own};

    fn parse(text: &str) -> Result<FbSource, String> {
        text.parse()
    }

    #[test]
    fn the_three_kinds_and_their_options() {
        assert_eq!(parse("/dev/fb0"), Ok(FbSource::Real("/dev/fb0".into())));
        let memory = Own {
            size: Some((1024, 768)),
            depth: 16,
            number: Some(3),
            ..Own::default()
        };
        assert_eq!(parse("memory:1024x768x16,as=3"), Ok(FbSource::Own(memory)));
        let kms = Own {
            card: Some("/dev/dri/card0".into()),
            connector: Some("HDMI-A-1".to_owned()),
            size: Some((640, 480)),
            depth: 8,
            direct: false,
            keep: Some(true),
            number: None,
        };
        let text = "kms:/dev/dri/card0,connector=HDMI-A-1,size=640x480,depth=8,shadow,keep";
        assert_eq!(parse(text), Ok(FbSource::Own(kms)));
    }

    #[test]
    fn nonsense_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "is neither"),
            ("/dev/fb0,keep", "is neither"),
            ("kms:", "which card?"),
            ("kms:/dev/dri/card0,keep=1", "none of its options"),
            ("kms:/dev/dri/card0,as=32", "/dev/fb0 to /dev/fb31"),
            ("kms:/dev/dri/card0,depth=15", "8, 16, 24 or 32"),
            ("memory:0x768x32", "no size"),
            ("memory:1024x768", "no size"),
            ("memory:99999x768x32", "no size"),
            ("memory:1024x768x32,keep", "none of its options: as=N"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
