//! Another program on a graphics card, as a compositor is: master of it for as long as it runs, with a picture of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use drm::Device as _;
use drm::buffer::DrmFourcc;
use drm::control::{Device as _, connector, crtc};

/// A card that was opened.
#[derive(Debug)]
pub struct Card(File);

impl AsFd for Card {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl drm::Device for Card {}
impl drm::control::Device for Card {}

impl Card {
    /// Opens it. Whoever opens it while it has no master is its master.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        Ok(Self(file))
    }

    /// The connector with a monitor, and its CRTC.
    pub fn screen(&self) -> anyhow::Result<(connector::Info, crtc::Handle)> {
        let resources = self.resource_handles()?;
        for &connector in resources.connectors() {
            let info = self.get_connector(connector, false)?;
            if info.state() == connector::State::Connected {
                let crtc = resources.crtcs().first().context("no CRTC")?;
                return Ok((info, *crtc));
            }
        }
        anyhow::bail!("no monitor")
    }

    /// Who has made what the card shows, as far as debugfs tells: `[fbcon]`, or a program.
    pub fn painter(path: &Path) -> anyhow::Result<String> {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let minor = name.trim_start_matches("card");
        let state = std::fs::read_to_string(format!("/sys/kernel/debug/dri/{minor}/state"))?;
        let maker = state
            .lines()
            .find_map(|line| line.trim().strip_prefix("allocated by = "));
        Ok(maker.unwrap_or_default().to_owned())
    }
}

/// The color of its picture.
pub const COLOR: [u8; 3] = [0x20, 0xc0, 0x60];

/// Takes the card at `path`, shows [`COLOR`], says `shown`, and looks until its stdin ends whether anybody takes the screen
/// or mastership from it; says what it has seen.
pub fn run(path: &str) -> anyhow::Result<String> {
    let card = Card::open(path.as_ref())?;
    // A compositor without logind tries again as well, if it meets somebody who is master for a moment.
    let mut tried = 0;
    while card.acquire_master_lock().is_err() {
        tried += 1;
        ensure!(tried < 100, "somebody is master all the time");
        std::thread::sleep(Duration::from_millis(1));
    }
    let (info, crtc) = card.screen()?;
    let mode = *info.modes().first().context("no mode")?;
    let size = (u32::from(mode.size().0), u32::from(mode.size().1));
    let mut buffer = card.create_dumb_buffer(size, DrmFourcc::Xrgb8888, 32)?;
    let [red, green, blue] = COLOR;
    for pixel in card.map_dumb_buffer(&mut buffer)?.chunks_exact_mut(4) {
        pixel.copy_from_slice(&[blue, green, red, 0]);
    }
    let own = card.add_framebuffer(&buffer, 24, 32)?;
    card.set_crtc(crtc, Some(own), (0, 0), &[info.handle()], Some(mode))?;
    println!("shown");
    std::io::stdout().flush()?;
    let (sender, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        let _ = sender.send(());
    });
    let mut looks = 0;
    while ended.recv_timeout(Duration::from_millis(5)).is_err() {
        let shown = card.get_crtc(crtc)?.framebuffer();
        ensure!(
            shown == Some(own),
            "after {looks} looks somebody else's picture is shown"
        );
        // It works for a master only.
        let flags = drm::control::PageFlipFlags::empty();
        let flipped = card.page_flip(crtc, own, flags, None);
        ensure!(
            flipped
                .as_ref()
                .map_or_else(|error| error.raw_os_error() == Some(libc::EBUSY), |()| true),
            "after {looks} looks: {flipped:?}"
        );
        looks += 1;
    }
    Ok(format!(
        "undisturbed for {looks} looks, master after {tried} tries more"
    ))
}
