//! Whose screen it is: virtual terminals and the kernel's console, as sysfs tells of them.

use std::fs;
use std::path::{Path, PathBuf};

/// The virtual terminal that is active, such as `tty1`; `None` where the kernel has none, or sysfs is not there.
pub fn active_terminal() -> Option<String> {
    let active = fs::read_to_string("/sys/class/tty/tty0/active").ok()?;
    let active = active.trim();
    (!active.is_empty()).then(|| active.to_owned())
}

/// Is the text console drawn on the card with this minor number (drm, major 226)? Which of several framebuffers a terminal
/// is on is not asked: the console is taken to be on each.
pub fn has_console(minor: u32) -> bool {
    is_bound(Path::new("/sys/class/vtconsole")) && {
        let all = framebuffers();
        // A kernel without CONFIG_FB_DEVICE names none, and has its console all the same.
        all.is_empty() || !framebuffers_of(minor).is_empty()
    }
}

/// The numbers of the card's own fbdev framebuffers: its `/dev/fbN`, whether or not there is a node.
pub fn framebuffers_of(minor: u32) -> Vec<u32> {
    let Ok(card) = fs::canonicalize(format!("/sys/dev/char/226:{minor}/device")) else {
        return Vec::new();
    };
    let is_the_cards =
        |(_, path): &(u32, PathBuf)| fs::canonicalize(path.join("device")).is_ok_and(|device| device == card);
    (framebuffers().into_iter().filter(is_the_cards))
        .map(|(number, _)| number)
        .collect()
}

fn framebuffers() -> Vec<(u32, PathBuf)> {
    let Ok(entries) = fs::read_dir("/sys/class/graphics") else {
        return Vec::new();
    };
    (entries.flatten())
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.strip_prefix("fb")?.parse().ok()?;
            Some((number, entry.path()))
        })
        .collect()
}

/// Does a console driver draw on framebuffers (drivers/tty/vt/vt.c, `show_name`)?
fn is_bound(consoles: &Path) -> bool {
    let Ok(entries) = fs::read_dir(consoles) else {
        return false;
    };
    entries.flatten().any(|entry| {
        let read = |name| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        read("name").contains("frame buffer") && read("bind").trim() == "1"
    })
}
