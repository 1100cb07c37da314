//! The screens of this guest: which framebuffer is which, what QEMU shows a person of each card, and pictures.
//!
//! What is done with a screen, and what is right, is none of this module's business.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::errno::Errno;
use vidcompat_proto::abi::fb::{FixScreenInfo, VarScreenInfo};

use crate::sys;

const FBIOGET_VSCREENINFO: u64 = 0x4600;
const FBIOPUT_VSCREENINFO: u64 = 0x4601;
const FBIOGET_FSCREENINFO: u64 = 0x4602;
/// `fb_var_screeninfo.activate`: also where nothing changes.
const FB_ACTIVATE_FORCE: u32 = 128;

/// FBIOGET_FSCREENINFO
pub fn fix(fb: &File) -> Result<FixScreenInfo, Errno> {
    let mut fix = FixScreenInfo::default();
    sys::ioctl(fb, FBIOGET_FSCREENINFO, &mut fix)?;
    Ok(fix)
}

/// FBIOGET_VSCREENINFO
pub fn var(fb: &File) -> Result<VarScreenInfo, Errno> {
    let mut var = VarScreenInfo::default();
    sys::ioctl(fb, FBIOGET_VSCREENINFO, &mut var)?;
    Ok(var)
}

/// FBIOPUT_VSCREENINFO
pub fn put_var(fb: &File, var: &mut VarScreenInfo) -> Result<(), Errno> {
    sys::ioctl(fb, FBIOPUT_VSCREENINFO, var).map(drop)
}

/// A framebuffer that a driver of the kernel has, or a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Screen {
    /// virtio-gpu, and the console is on it.
    Virtio,
    /// bochs: memory of the card, of which QEMU shows every write at once.
    Bochs,
    /// vfb: memory that nobody sees.
    Vfb,
}

impl Screen {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Virtio, Self::Bochs, Self::Vfb];

    /// `fb_fix_screeninfo.id`, which is also in `/sys/class/graphics/fbN/name`.
    pub const fn id(self) -> &'static str {
        match self {
            Self::Virtio => "virtio_gpudrmfb",
            Self::Bochs => "bochs-drmdrmfb",
            Self::Vfb => "Virtual FB",
        }
    }

    /// What QEMU calls the card: its `id=`. None: not a card of QEMU's.
    pub const fn device(self) -> Option<&'static str> {
        match self {
            Self::Virtio => Some("virtio"),
            Self::Bochs => Some("bochs"),
            Self::Vfb => None,
        }
    }

    /// The N of its real node `/dev/fbN`.
    pub fn number(self) -> anyhow::Result<u32> {
        for entry in fs::read_dir("/sys/class/graphics")?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(number) = name.strip_prefix("fb").and_then(|digits| digits.parse().ok()) else {
                continue; // fbcon
            };
            let id = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if id.trim_end() == self.id() {
                return Ok(number);
            }
        }
        anyhow::bail!("no framebuffer is called {}", self.id())
    }

    /// The real node.
    pub fn real(self) -> anyhow::Result<PathBuf> {
        Ok(format!("/dev/fb{}", self.number()?).into())
    }

    /// Our side node in front of it.
    pub fn ours(self) -> anyhow::Result<PathBuf> {
        Ok(format!("/dev/fb{}", self.number()? + 64).into())
    }

    /// The card's node: `/dev/dri/cardN`.
    pub fn card(self) -> anyhow::Result<PathBuf> {
        let device = format!("/sys/class/graphics/fb{}/device/drm", self.number()?);
        let entries = fs::read_dir(&device).with_context(|| format!("{self} is no card"))?;
        let mut names = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned());
        let name = names.find(|name| name.starts_with("card"));
        Ok(Path::new("/dev/dri").join(name.with_context(|| format!("no card in {device}"))?))
    }

    /// Shows the real node, in the mode that it has: a card without a console shows nothing until somebody asks.
    pub fn switch_on(self) -> anyhow::Result<()> {
        let fb = File::options().read(true).write(true).open(self.real()?)?;
        let mut var = var(&fb)?;
        var.activate = FB_ACTIVATE_FORCE;
        put_var(&fb, &mut var).with_context(|| format!("{self} cannot be switched on"))
    }

    /// What a person sees on it now, taken by QEMU and kept as `name`.png.
    pub fn picture(self, name: &str) -> anyhow::Result<Picture> {
        let device = self
            .device()
            .with_context(|| format!("QEMU does not see {self}"))?;
        let out = Path::new("/out");
        let request = out.join(format!("{name}.request"));
        let (ppm, error) = (out.join(format!("{name}.ppm")), out.join(format!("{name}.error")));
        drop(fs::remove_file(&ppm));
        fs::write(&request, device)?;
        let end = Instant::now() + Duration::from_secs(30);
        while request.exists() {
            ensure!(Instant::now() < end, "nobody takes pictures");
            thread::sleep(Duration::from_millis(20));
        }
        let said = || fs::read_to_string(&error).unwrap_or_default();
        let bytes = fs::read(&ppm).with_context(|| format!("no picture of {self}: {}", said()))?;
        Picture::from_ppm(&bytes).with_context(|| format!("picture of {self}"))
    }
}

impl fmt::Display for Screen {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(self.id())
    }
}

/// Looks whether all screens are there, and their cards.
pub fn prepare() -> anyhow::Result<()> {
    for screen in Screen::ALL {
        ensure!(
            screen.real()?.exists(),
            "{screen} has no {}",
            screen.real()?.display()
        );
        if screen.device().is_some() {
            ensure!(screen.card()?.exists(), "{screen} has no card");
        }
    }
    ensure!(Screen::Virtio.number()? == 0, "the console is on another screen");
    Screen::Bochs.switch_on()
}

/// Three bytes a pixel, as in a PPM file.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    pub width: usize,
    pub height: usize,
    pub rgb: Vec<u8>,
}

impl fmt::Debug for Picture {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "a picture of {}x{}", self.width, self.height)
    }
}

impl Picture {
    /// Of one color.
    pub fn plain(width: usize, height: usize, color: [u8; 3]) -> Self {
        Self {
            width,
            height,
            rgb: color.repeat(width * height),
        }
    }

    /// Of a PPM file without comments (P6, 255), as QEMU, ffmpeg and fbcat write them.
    pub fn from_ppm(bytes: &[u8]) -> anyhow::Result<Self> {
        let mut at = 0;
        let mut word = || {
            let rest = &bytes[at.min(bytes.len())..];
            let length = rest.iter().position(u8::is_ascii_whitespace)?;
            at += length + 1;
            std::str::from_utf8(&rest[..length]).ok()
        };
        ensure!(word() == Some("P6"), "no PPM file");
        let mut number = || word()?.parse::<usize>().ok();
        let (width, height, most) = (number(), number(), number());
        let (width, height) = width.zip(height).context("a PPM file without a size")?;
        ensure!(most == Some(255), "a PPM file of {most:?} shades");
        let rgb = bytes
            .get(at..at + width * height * 3)
            .context("a short PPM file")?;
        Ok(Self {
            width,
            height,
            rgb: rgb.to_vec(),
        })
    }

    /// Of a PNG file, as `vidcompat screenshot` writes them.
    pub fn from_png(path: &str) -> anyhow::Result<Self> {
        let ended = Command::new("pngtopnm").arg(path).output().context("pngtopnm")?;
        ensure!(
            ended.status.success(),
            "pngtopnm {path}: {}",
            String::from_utf8_lossy(&ended.stderr)
        );
        Self::from_ppm(&ended.stdout)
    }

    /// The color at a place.
    pub fn at(&self, x: usize, y: usize) -> [u8; 3] {
        let at = (y * self.width + x) * 3;
        [self.rgb[at], self.rgb[at + 1], self.rgb[at + 2]]
    }

    /// Puts another one into it, with its upper left corner at (`x`, `y`).
    pub fn put(&mut self, other: &Self, x: usize, y: usize) {
        for row in 0..other.height {
            let to = ((y + row) * self.width + x) * 3;
            let from = row * other.width * 3;
            self.rgb[to..to + other.width * 3].copy_from_slice(&other.rgb[from..from + other.width * 3]);
        }
    }

    /// How many colors there are in it, as far as `most`.
    pub fn colors(&self, most: usize) -> usize {
        let mut colors = std::collections::HashSet::new();
        for pixel in self.rgb.chunks_exact(3) {
            colors.insert(pixel);
            if colors.len() >= most {
                break;
            }
        }
        colors.len()
    }

    /// An error that says where the two differ, if they do.
    pub fn must_be(&self, expected: &Self) -> anyhow::Result<()> {
        self.must_be_near(expected, 0)
    }

    /// The same, where a color may be off by `by` in each of its parts: what a depth of fewer bits costs.
    pub fn must_be_near(&self, expected: &Self, by: u8) -> anyhow::Result<()> {
        ensure!(
            (self.width, self.height) == (expected.width, expected.height),
            "{self:?} instead of {expected:?}"
        );
        // The emulator is slow with single bytes.
        if self.rgb == expected.rgb {
            return Ok(());
        }
        let pairs = self.rgb.chunks_exact(3).zip(expected.rgb.chunks_exact(3));
        let wrong = pairs
            .enumerate()
            .filter(|(_, (found, right))| found.iter().zip(*right).any(|(a, b)| a.abs_diff(*b) > by));
        let wrong: Vec<usize> = wrong.map(|(at, _)| at).collect();
        let Some(first) = wrong.first() else {
            return Ok(());
        };
        let (x, y) = (first % self.width, first / self.width);
        anyhow::bail!(
            "{} of {} pixels are wrong, the first at {x},{y}: {:?} instead of {:?}",
            wrong.len(),
            self.width * self.height,
            self.at(x, y),
            expected.at(x, y)
        )
    }
}
