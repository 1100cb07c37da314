//! Where a program finds a framebuffer: the real node, ours in front of it, or ours made from the card while the real
//! node is hidden.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::stat::{Mode, SFlag, mknod};

use crate::daemon::Daemon;
use crate::screens::{Picture, Screen};
use crate::shim::Seat;

/// What a screen is full of before a program draws.
pub const GREY: u8 = 0x40;

/// A place.
pub struct Place {
    /// What shows it.
    pub screen: Screen,
    /// For file names.
    pub name: &'static str,
    /// What programs are told.
    pub seat: Seat,
    /// Where we ourselves find the framebuffer.
    pub node: PathBuf,
    // In this order: our node goes before the real one comes back.
    daemon: Option<Daemon>,
    _hidden: Option<Hidden>,
}

impl Place {
    /// The real node.
    pub fn real(screen: Screen) -> anyhow::Result<Self> {
        let node = screen.real()?;
        Self {
            screen,
            name: "real",
            seat: Seat::at("on the real node", node.clone()),
            node,
            daemon: None,
            _hidden: None,
        }
        .for_everybody()
    }

    /// Ours in front of it, in whose place `vidcompat run` puts it.
    pub fn ours(screen: Screen) -> anyhow::Result<Self> {
        let real = screen.real()?;
        let daemon = Daemon::start(&["--fb", real.to_str().context("no text")?])?;
        Self {
            screen,
            name: "ours",
            seat: Seat::run_at("on ours in front of the real node", real),
            node: screen.ours()?,
            daemon: Some(daemon),
            _hidden: None,
        }
        .for_everybody()
    }

    /// Ours made from the card, by the real one's name. The picture stays when a program has ended, although there is a
    /// console that could come back.
    pub fn kms(screen: Screen) -> anyhow::Result<Self> {
        Self::kms_with(screen, ",keep")
    }

    /// The same with options of `--fb kms:` (`,size=640x480`).
    pub fn kms_with(screen: Screen, options: &str) -> anyhow::Result<Self> {
        let (node, number) = (screen.real()?, screen.number()?);
        let hidden = Hidden::new(&node)?;
        let wish = format!("kms:{},as={number}{options}", screen.card()?.display());
        let daemon = Daemon::start(&["--fb", &wish])?;
        Self {
            screen,
            name: "kms",
            seat: Seat::run_at("on ours made from the card", node.clone()),
            node,
            daemon: Some(daemon),
            _hidden: Some(hidden),
        }
        .for_everybody()
    }

    /// Some programs do not run as root.
    fn for_everybody(self) -> anyhow::Result<Self> {
        fs::set_permissions(&self.node, fs::Permissions::from_mode(0o666)).context(self.seat.name)?;
        Ok(self)
    }

    /// The node, to read and to write.
    pub fn open(&self) -> anyhow::Result<File> {
        let file = OpenOptions::new().read(true).write(true).open(&self.node);
        file.with_context(|| format!("{} {}", self.node.display(), self.seat.name))
    }

    /// So that nothing that was drawn before can be taken for what comes.
    pub fn wipe(&self) -> anyhow::Result<()> {
        let file = self.open()?;
        let length = crate::screens::fix(&file)?.smem_len;
        let bytes = vec![GREY; length as usize];
        file.write_all_at(&bytes, 0)
            .with_context(|| format!("writing {}", self.seat.name))
    }

    /// What the daemon has said.
    pub fn log(&self) -> String {
        self.daemon.as_ref().map(Daemon::log).unwrap_or_default()
    }

    /// What a person sees, kept for people by this name.
    pub fn picture(&self, name: &str) -> anyhow::Result<Picture> {
        let device = self.screen.device().unwrap_or_default();
        self.screen.picture(&format!("{name}-{}-{device}", self.name))
    }

    /// Waits until a person sees `right`, of which a color may be off by `by`.
    pub fn until(&self, name: &str, right: &Picture, by: u8, limit: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + limit;
        loop {
            let seen = self.picture(name)?.must_be_near(right, by);
            if seen.is_ok() || Instant::now() > end {
                return seen.with_context(|| format!("{name} {}, {}", self.seat.name, self.screen));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What a person sees once it is a picture, and stays the same for a while.
    pub fn settled(&self, name: &str, limit: Duration) -> anyhow::Result<Picture> {
        let end = Instant::now() + limit;
        let mut last = self.picture(name)?;
        loop {
            std::thread::sleep(Duration::from_millis(1500));
            let picture = self.picture(name)?;
            if picture == last && picture.colors(4) >= 4 {
                return Ok(picture);
            }
            ensure!(
                Instant::now() < end,
                "{name} {}, {}: no picture, {} colors",
                self.seat.name,
                self.screen,
                picture.colors(4)
            );
            last = picture;
        }
    }
}

/// A node that is not there until this is dropped.
pub struct Hidden {
    path: PathBuf,
    number: u64,
    mode: u32,
}

impl Hidden {
    pub fn new(path: &Path) -> anyhow::Result<Self> {
        let found = fs::metadata(path).with_context(|| path.display().to_string())?;
        fs::remove_file(path)?;
        Ok(Self {
            path: path.to_owned(),
            number: found.rdev(),
            mode: found.mode() & 0o7777,
        })
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let mode = Mode::from_bits_truncate(self.mode);
        if let Err(error) = mknod(&self.path, SFlag::S_IFCHR, mode, self.number) {
            eprintln!("{} does not come back: {error}", self.path.display());
        }
    }
}
