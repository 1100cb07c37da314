//! Programs for framebuffers, unmodified: on the real nodes, on ours in front of them, and on ours made from a card; what
//! a person sees must be the same.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::Context;

use crate::screens::{Picture, Screen};
use crate::setup::Test;

pub const TESTS: &[(&str, Test)] = &[(
    "fb_programs::qemu_sees_what_is_written_to_the_real_nodes",
    pictures,
)];

/// That the pictures below are of the screens that they are thought to be of.
fn pictures() -> anyhow::Result<()> {
    for (screen, color) in [
        (Screen::Virtio, [0x10, 0x80, 0xf0]),
        (Screen::Bochs, [0xf0, 0x40, 0x20]),
    ] {
        let [red, green, blue] = color;
        let right = Picture::plain(1280, 800, color);
        let bytes = [blue, green, red, 0].repeat(right.width * right.height);
        File::options()
            .write(true)
            .open(screen.real()?)?
            .write_all_at(&bytes, 0)?;
        // A driver without direct access to what is shown sends it in up to 50 ms.
        std::thread::sleep(std::time::Duration::from_millis(300));
        let picture = screen.picture(&format!("plain-{}", screen.device().context("a card")?))?;
        picture
            .must_be(&right)
            .with_context(|| format!("{screen}, {} colors", picture.colors(2)))?;
    }
    Ok(())
}
