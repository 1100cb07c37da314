//! A framebuffer device (`/dev/fbN`).
//!
//! Most are copied into: through the client's mapping where it has pages (vfb, DRM drivers), through one of ours where
//! it is the card's own memory (vesafb, efifb, simplefb). Of a DRM driver the object behind it can be imported where
//! what is mapped is the object itself. That is not said anywhere; many drivers show a shadow that is copied to the
//! object later (bochs; on Linux 6.1 all that have to be told of changes). So it must show in two ways: the pages are
//! of shmem, not of the kernel's own memory, as a shadow's are; and the card's list of framebuffers names exactly one
//! that was made for the framebuffer device.

use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::stat::{major, minor};

use super::flush::Flush;
use super::{Access, CopyBy, Found, Importable, Kind, Look};
use crate::sys::{self, Vma};

/// `FB_MAJOR` (linux/major.h)
const MAJOR: u32 = 29;

/// The exporter whose object can be the very memory that its framebuffer device shows; others are not looked at.
const EXPORTER: &str = "virtio_gpu";

/// Who made a framebuffer, in the card's list: the framebuffer device (drm_client.c, drm_fbdev_*.c; before, i915).
const MAKERS: [&str; 2] = ["fbdev", "[fbcon]"];

/// See the module.
pub(super) struct Framebuffer;

impl Kind for Framebuffer {
    fn name(&self) -> &'static str {
        "framebuffer"
    }

    fn major(&self) -> Option<u32> {
        Some(MAJOR)
    }

    fn find(&self, look: &Look<'_>, vma: &Vma, range: &Range<u64>) -> Option<Found> {
        let (_, number) = look.client.device_of(vma)?;
        let by_fd = look.client.files_of(vma, |file| file.link == vma.name).next();
        // The mapping itself leads there, too; it is opened anew, which means nothing to a framebuffer.
        let file = by_fd
            .map(File::from)
            .or_else(|| look.client.open_mapped(vma).ok());
        // Some drivers let anything be mapped, with nothing behind it.
        let place = vma.offset.checked_add(range.end - vma.start)? - (range.end - range.start);
        let length = range.end - range.start;
        let has_pages = look.client.touch(range.start).is_ok();
        let (id, copy) = match file.map(Arc::new) {
            None => (None, Err("the framebuffer cannot be opened".to_owned())),
            Some(file) => match sys::screen_memory(&*file) {
                Err(errno) => (None, Err(format!("it says nothing of its memory: {errno}"))),
                Ok(memory) => (Some((file, memory)), Ok(())),
            },
        };
        let import = match &id {
            _ if !has_pages => Err("a framebuffer of device memory is copied".to_owned()),
            None => Err("nothing is known of its memory".to_owned()),
            Some((file, memory)) => {
                import(look, number, range.start, place, memory.pitch).and_then(|object| match look.access {
                    Access::Write => Ok((object, Some(shown(file, place, length)?))),
                    Access::Read => Ok((object, None)),
                })
            }
        };
        let (import, flush) = match import {
            Ok((object, flush)) => (Ok(object), flush),
            Err(why) => (Err(why), None),
        };
        let what = match &id {
            Some((_, memory)) => format!("{} ({})", String::from_utf8_lossy(&vma.name), memory.id),
            None => String::from_utf8_lossy(&vma.name).into_owned(),
        };
        let copy = match id {
            _ if has_pages => Ok(CopyBy::Memory),
            // Behind the memory registers can be mapped, and the offset does not tell (fb_io_fops.c, `fb_io_mmap`).
            Some((_, memory)) if memory.has_registers => {
                Err("its memory cannot be told from its registers".to_owned())
            }
            Some((_, memory)) if place + length > memory.mappable => {
                Err("it reaches behind the framebuffer's memory".to_owned())
            }
            Some((file, _)) => Ok(CopyBy::Object {
                file,
                offset: place / 4096 * 4096,
                skip: place % 4096,
                sync: false,
            }),
            None => Err(copy.err().unwrap_or_default()),
        };
        Some(Found {
            what,
            import,
            copy,
            frame: None,
            flush,
        })
    }
}

/// The object behind framebuffer device `number`, of which the client has mapped the byte `place` at `client_addr`.
///
/// # Errors
/// Why there is none to be imported, for people.
fn import(
    look: &Look<'_>,
    number: u32,
    client_addr: u64,
    place: u64,
    pitch: u32,
) -> Result<Importable, String> {
    look.may_import(EXPORTER)?;
    let device = format!("/sys/dev/char/{MAJOR}:{number}/device");
    let card = card_of(Path::new(&device)).ok_or("there is no graphics card behind it")?;
    let frame = look.client.frame(client_addr).ok_or("its pages cannot be seen")?;
    if !sys::is_swap_backed(frame).map_err(|error| format!("its pages cannot be seen: {error}"))? {
        return Err("what it shows is a shadow of the card's memory".to_owned());
    }
    let id = framebuffer_of(&card).map_err(str::to_owned)?;
    let (dma_buf, offset) = export(&card, id, pitch)?;
    Importable::of(look, Arc::new(dma_buf), offset + place)
}

/// What a device writes to the object nobody notices: a driver that has to be told of changes (a virtual card, one on
/// USB) finds out by write faults in mappings of the framebuffer device. It is told by faults in ours.
fn shown(file: &File, place: u64, length: u64) -> Result<Arc<Flush>, String> {
    let flush = Flush::by_faults(file, place, length);
    flush
        .map(Arc::new)
        .map_err(|error| format!("it could not be shown: {error}"))
}

/// A graphics card: its primary node's name and minor.
struct Card {
    node: PathBuf,
    minor: u64,
}

fn card_of(device: &Path) -> Option<Card> {
    let mut cards = std::fs::read_dir(device.join("drm")).ok()?.filter_map(|entry| {
        let name = entry.ok()?.file_name();
        let minor = name.to_str()?.strip_prefix("card")?.parse().ok()?;
        Some(Card {
            node: Path::new("/dev/dri").join(name),
            minor,
        })
    });
    cards.next()
}

/// The number of the one framebuffer that was made for the framebuffer device, by the list in debugfs.
fn framebuffer_of(card: &Card) -> Result<u32, &'static str> {
    let list = std::fs::read_to_string(format!("/sys/kernel/debug/dri/{}/framebuffer", card.minor));
    let list = list.map_err(|_| "the card's framebuffers are not listed (no debugfs?)")?;
    the_one_made_for_fbdev(&list).ok_or("none, or several, of the card's framebuffers are the device's")
}

fn the_one_made_for_fbdev(list: &str) -> Option<u32> {
    let mut current = None;
    let mut found = Vec::new();
    for line in list.lines() {
        if let Some(rest) = line.strip_prefix("framebuffer[") {
            current = rest.strip_suffix("]:").and_then(|id| id.parse().ok());
        } else if let Some(maker) = line.trim_start().strip_prefix("allocated by = ")
            && MAKERS.contains(&maker)
        {
            found.push(current?);
        }
    }
    match found.as_slice() {
        [one] => Some(*one),
        _ => None,
    }
}

/// The memory of framebuffer `id` as a dma-buf, and where in it the framebuffer begins.
fn export(card: &Card, id: u32, pitch: u32) -> Result<(OwnedFd, u64), String> {
    let open = File::options().read(true).write(true).open(&card.node);
    let drm = open.map_err(|error| format!("{}: {error}", card.node.display()))?;
    // Where nobody is master, we have just become it: let nobody notice.
    let _ = sys::drop_master(&drm);
    let rdev = drm.metadata().map_err(|error| error.to_string())?.rdev();
    if (major(rdev), minor(rdev)) != (226, card.minor) {
        return Err(format!("{} is not the card", card.node.display()));
    }
    let framebuffer =
        sys::framebuffer(&drm, id).map_err(|errno| format!("its framebuffer cannot be had: {errno}"))?;
    let exported = sys::prime_export(&drm, framebuffer.handle);
    let _ = sys::gem_close(&drm, framebuffer.handle);
    if framebuffer.pitch != pitch {
        return Err("the card's framebuffer has another geometry".to_owned());
    }
    let dma_buf = exported.map_err(|errno| format!("its driver does not export it: {errno}"))?;
    Ok((dma_buf, u64::from(framebuffer.offset)))
}

#[cfg(test)]
mod tests {
    use super::the_one_made_for_fbdev;

    const LIST: &str = "framebuffer[41]:\n\tallocated by = weston\n\trefcount=2\n\tlayers:\n\t\tsize[0]=1x1\n\
        framebuffer[38]:\n\tallocated by = fbdev\n\trefcount=1\n";

    #[test]
    fn the_framebuffer_devices_own_is_found_among_others_and_two_are_none() {
        assert_eq!(the_one_made_for_fbdev(LIST), Some(38));
        assert_eq!(the_one_made_for_fbdev(&LIST[..50]), None);
        assert_eq!(the_one_made_for_fbdev(&format!("{LIST}{LIST}")), None);
        assert_eq!(the_one_made_for_fbdev("\tallocated by = fbdev\n"), None);
    }
}
