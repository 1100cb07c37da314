//! What the kernel says about this process's mappings: `/proc/self/maps`, read without an allocation.
//!
//! The text and not PROCMAP_QUERY, which begins with Linux 6.11: so there is one way for all kernels. It is gone once
//! for an adoption and once for giving back, about 1 us for each mapping that the program has.

use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, Result, read};
use rustix::mm::MprotectFlags;

use super::sys::Stretch;

/// What a mapping shows, as maps names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Object {
    device: (u64, u64),
    inode: u64,
    /// Bytes, where the mapping begins.
    offset: u64,
}

impl Object {
    /// The same, `bytes` on.
    pub(super) fn after(self, bytes: usize) -> Self {
        Self {
            offset: self.offset.wrapping_add(bytes as u64),
            ..self
        }
    }
}

/// One line.
#[derive(Clone, Copy, Debug)]
struct Line<'a> {
    stretch: Stretch,
    /// As `rw-p`
    mode: &'a [u8],
    object: Object,
    name: &'a [u8],
}

/// More than what stands before the name, and of that enough to tell the kernel's own names.
const LINE: usize = 160;

impl<'a> Line<'a> {
    fn parse(text: &'a [u8]) -> Option<Self> {
        let mut words = text.splitn(6, |byte| *byte == b' ');
        let mut range = words.next()?.split(|byte| *byte == b'-');
        let start = usize::try_from(number(range.next()?, 16)?).ok()?;
        let end = usize::try_from(number(range.next()?, 16)?).ok()?;
        let mode = words.next()?;
        let offset = number(words.next()?, 16)?;
        let mut device = words.next()?.split(|byte| *byte == b':');
        let device = (number(device.next()?, 16)?, number(device.next()?, 16)?);
        let inode = number(words.next()?, 10)?;
        Some(Self {
            stretch: Stretch {
                start,
                len: end.checked_sub(start)?,
            },
            mode,
            object: Object {
                device,
                inode,
                offset,
            },
            name: words.next().unwrap_or_default().trim_ascii(),
        })
    }

    fn holds(&self, part: Stretch) -> bool {
        self.stretch.start <= part.start && part.end() <= self.stretch.end()
    }

    /// Private memory of the program's, for reading and writing, that is no file's, not the brk heap and not the main
    /// thread's stack. Its owner may have given it a name (PR_SET_VMA_ANON_NAME).
    fn is_ordinary(&self) -> bool {
        self.mode == b"rw-p"
            && self.object.device == (0, 0)
            && self.object.inode == 0
            && (self.name.is_empty() || self.name.starts_with(b"[anon:"))
    }

    fn protection(&self) -> MprotectFlags {
        let all = [MprotectFlags::READ, MprotectFlags::WRITE, MprotectFlags::EXEC];
        let mut prot = MprotectFlags::empty();
        for (flag, letter) in all.into_iter().zip(self.mode) {
            prot.set(flag, *letter != b'-');
        }
        prot
    }
}

fn number(text: &[u8], base: u32) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |number, digit| {
        let digit = char::from(*digit).to_digit(base)?;
        number.checked_mul(u64::from(base))?.checked_add(u64::from(digit))
    })
}

/// Calls `see` with line after line until it says that it has seen enough.
fn each(mut see: impl FnMut(Line<'_>) -> bool) -> Result<()> {
    let file = open(
        c"/proc/self/maps",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let (mut buffer, mut line, mut filled) = ([0; 2048], [0; LINE], 0);
    loop {
        let bytes = match read(&file, &mut buffer) {
            Ok(0) => return Ok(()),
            Ok(bytes) => bytes,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error),
        };
        for byte in buffer.iter().take(bytes) {
            if *byte != b'\n' {
                // A long name loses its end.
                if let Some(place) = line.get_mut(filled) {
                    *place = *byte;
                    filled += 1;
                }
                continue;
            }
            let text = line.get(..filled).unwrap_or_default();
            filled = 0;
            if Line::parse(text).is_some_and(&mut see) {
                return Ok(());
            }
        }
    }
}

/// If `stretch` lies in one mapping of ordinary memory: what the mapping at `alias` shows.
pub(super) fn ordinary_and_object(stretch: Stretch, alias: Stretch) -> Option<Object> {
    let (mut ordinary, mut object) = (false, None);
    each(|line| {
        if line.stretch.overlaps(stretch) {
            ordinary = line.holds(stretch) && line.is_ordinary();
        }
        if line.stretch.start == alias.start && line.holds(alias) {
            object = Some(line.object);
        }
        false
    })
    .ok()?;
    object.filter(|object| ordinary && object.inode != 0)
}

/// The first part of `stretch` that shows `object`, shared, where it would if nobody had touched it; and what the program
/// may do there.
pub(super) fn first_part(stretch: Stretch, object: Object) -> Result<Option<(Stretch, MprotectFlags)>> {
    let mut found = None;
    each(|line| {
        if !line.stretch.overlaps(stretch) || line.mode.get(3) != Some(&b's') {
            return false;
        }
        let start = line.stretch.start.max(stretch.start);
        let len = line.stretch.end().min(stretch.end()) - start;
        let expected = object.after(start - stretch.start);
        if line.object.after(start - line.stretch.start) == expected {
            found = Some((Stretch { start, len }, line.protection()));
        }
        found.is_some()
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::{Line, each, first_part, ordinary_and_object};
    use crate::adopt::sys::{Mapping, Stretch, page_bytes};
    use rustix::mm::MprotectFlags;

    fn part(mapping: &Mapping, page: usize, pages: usize) -> Stretch {
        Stretch {
            start: mapping.stretch().start + page * page_bytes(),
            len: pages * page_bytes(),
        }
    }

    #[test]
    fn a_line_is_what_proc_5_says() {
        let text =
            b"7f12a0000000-7f12a0400000 rw-s 00001000 00:0c 7342                       /dmabuf:camera 1";
        let line = Line::parse(text).unwrap();
        assert_eq!(
            (line.stretch.start, line.stretch.len),
            (0x7f12_a000_0000, 0x40_0000)
        );
        assert_eq!(
            (line.object.device, line.object.inode, line.object.offset),
            ((0, 12), 7342, 4096)
        );
        assert_eq!((line.mode, line.name), (&b"rw-s"[..], &b"/dmabuf:camera 1"[..]));
        assert_eq!(line.protection(), MprotectFlags::READ | MprotectFlags::WRITE);
        for cut in 0..40 {
            assert!(Line::parse(&text[..cut]).is_none());
        }
    }

    #[test]
    fn what_is_ordinary() {
        let is_ordinary = |text: &str| Line::parse(text.as_bytes()).unwrap().is_ordinary();
        assert!(is_ordinary("1000-2000 rw-p 00000000 00:00 0 "));
        assert!(is_ordinary(
            "1000-2000 rw-p 00000000 00:00 0      [anon: glibc: malloc]"
        ));
        assert!(!is_ordinary("1000-2000 r--p 00000000 00:00 0 "));
        assert!(!is_ordinary("1000-2000 rwxp 00000000 00:00 0 "));
        assert!(!is_ordinary(
            "1000-2000 rw-s 00000000 00:01 5    /dev/zero (deleted)"
        ));
        assert!(!is_ordinary(
            "1000-2000 rw-p 00000000 00:0f 5    /anon_hugepage (deleted)"
        ));
        assert!(!is_ordinary("1000-2000 rw-p 00000000 00:00 0    [heap]"));
        assert!(!is_ordinary("1000-2000 rw-p 00000000 00:00 0    [stack]"));
        assert!(!is_ordinary(
            "1000-2000 rw-p 00002000 fe:01 77   /usr/lib/libc.so.6"
        ));
    }

    #[test]
    fn all_lines_are_read_to_their_end() {
        let (mut lines, mut last) = (0, 0);
        each(|line| {
            assert!(line.stretch.start >= last && line.stretch.len > 0);
            last = line.stretch.start;
            lines += 1;
            false
        })
        .unwrap();
        assert!(lines > 20);
    }

    #[test]
    fn parts_are_ours_where_they_show_the_same_object_at_the_same_place() {
        let page = page_bytes();
        let memfd = || {
            let file = rustix::fs::memfd_create("object", rustix::fs::MemfdFlags::empty()).unwrap();
            rustix::fs::ftruncate(&file, 8 * page as u64).unwrap();
            file
        };
        let file = memfd();
        let (alias, place) = (
            Mapping::of_file(&file, 8 * page).unwrap(),
            Mapping::of_file(&file, 8 * page).unwrap(),
        );
        let ordinary = Mapping::anonymous(8 * page).unwrap();
        let object = ordinary_and_object(ordinary.stretch(), alias.stretch()).unwrap();
        assert_eq!(ordinary_and_object(place.stretch(), alias.stretch()), None);
        let all = first_part(place.stretch(), object).unwrap().unwrap();
        assert_eq!(all, (place.stretch(), MprotectFlags::READ | MprotectFlags::WRITE));
        // A hole before, read-only behind; another object, and the same one elsewhere, in the midst.
        let elsewhere = part(&place, 5, 1);
        let (first, rest) = place.split(2 * page);
        drop(first);
        let rest = rest.unwrap();
        Mapping::of_file(memfd(), page)
            .unwrap()
            .over(part(&rest, 1, 1))
            .unwrap();
        let (stretch, _) = first_part(alias.stretch(), object).unwrap().unwrap();
        assert_eq!(stretch, alias.stretch());
        let place = Stretch {
            start: rest.stretch().start - 2 * page,
            len: 8 * page,
        };
        let (stretch, _) = first_part(place, object).unwrap().unwrap();
        assert_eq!(stretch, part(&rest, 0, 1));
        let behind = Stretch {
            start: part(&rest, 1, 1).start,
            len: 5 * page,
        };
        let (stretch, _) = first_part(behind, object.after(3 * page)).unwrap().unwrap();
        assert_eq!(stretch, part(&rest, 2, 4));
        Mapping::of_file(&file, page).unwrap().over(elsewhere).unwrap();
        let (stretch, _) = first_part(behind, object.after(3 * page)).unwrap().unwrap();
        assert_eq!(stretch, part(&rest, 2, 1));
        assert_eq!(first_part(ordinary.stretch(), object).unwrap(), None);
    }
}
