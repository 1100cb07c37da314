//! A screen on an output that only remembers what it was told.

mod fake;
mod presenter;

use vidcompat_proto::Errno;
use vidcompat_proto::abi::fb::{ColorMap, Con2FbMap, VarScreenInfo};

use super::{Screen, ScreenOptions};
use crate::backend::framebuffer::{Framebuffer, FramebufferFile};
use crate::sys::SteadyMemory;

fn options(size: Option<(u32, u32)>, depth: u32) -> ScreenOptions {
    ScreenOptions {
        size,
        depth,
        direct: false,
        keep: None,
    }
}

/// What a program does: it takes what there is, and changes what it wants.
fn put(file: &dyn FramebufferFile, change: impl FnOnce(&mut VarScreenInfo)) -> Result<VarScreenInfo, Errno> {
    let mut var = file.fbioget_vscreeninfo().expect("a mode");
    change(&mut var);
    file.fbioput_vscreeninfo(&mut var).map(|()| var)
}

#[test]
fn what_is_written_to_a_screen_that_nobody_sees_is_its_picture() {
    let screen = Screen::new(options(Some((16, 8)), 16), None).expect("a screen");
    let file = screen.open(libc::O_RDWR).expect("open");
    assert_eq!(file.fbioget_fscreeninfo().expect("fix").smem_len, 4096);
    let white_and_red = [0xff, 0xff, 0x00, 0xf8];
    assert_eq!(file.write(32, &white_and_red), Ok(4));
    let picture = screen.picture().expect("a picture");
    assert_eq!(
        (picture.width, picture.height, picture.rgb.len()),
        (16, 8, 16 * 8 * 3)
    );
    assert_eq!(picture.rgb[48..54], [255, 255, 255, 255, 0, 0]);
    assert!(
        picture.rgb[..48]
            .iter()
            .chain(&picture.rgb[54..])
            .all(|byte| *byte == 0)
    );
    // Blanked: dark.
    assert_eq!(
        (file.fbioblank(1), file.fbioblank(5)),
        (Ok(()), Err(Errno::EINVAL))
    );
    assert!(
        screen
            .picture()
            .expect("a picture")
            .rgb
            .iter()
            .all(|byte| *byte == 0)
    );
    // Panned by a line, with all of it seen again.
    assert_eq!(file.fbioblank(0), Ok(()));
    let mut var = put(&*file, |var| var.yres_virtual = 16).expect("room");
    var.yoffset = 1;
    assert_eq!(file.fbiopan_display(&mut var), Ok(()));
    assert_eq!(
        screen.picture().expect("a picture").rgb[..6],
        [255, 255, 255, 255, 0, 0]
    );
}

#[test]
fn reading_and_writing_end_where_the_memory_does() {
    let screen = Screen::new(options(Some((16, 8)), 32), None).expect("a screen");
    let file = screen.open(libc::O_RDWR).expect("open");
    let mut bytes = [7; 8];
    assert_eq!(
        (file.write(4090, &[1; 20]), file.read(4090, &mut bytes)),
        (Ok(6), Ok(6))
    );
    assert_eq!(bytes, [1, 1, 1, 1, 1, 1, 7, 7]);
    assert_eq!(file.write(4096, &[1]).map_err(Errno::raw), Err(libc::ENOSPC));
    assert_eq!(file.write(4096, &[1; 4097]).map_err(Errno::raw), Err(libc::EFBIG));
    assert_eq!(file.write(4097, &[1]).map_err(Errno::raw), Err(libc::EFBIG));
    assert_eq!(file.write(u64::MAX, &[]).map_err(Errno::raw), Err(libc::EFBIG));
    assert_eq!(file.write(4096, &[]), Ok(0));
    assert_eq!(
        (file.read(4096, &mut bytes), file.read(u64::MAX, &mut bytes)),
        (Ok(0), Ok(0))
    );
}

#[test]
fn what_is_mapped_survives_a_change_of_the_mode_and_is_seen_by_all() {
    let screen = Screen::new(options(None, 32), None).expect("a screen");
    let (one, other) = (
        screen.open(libc::O_RDWR).expect("open"),
        screen.open(libc::O_RDWR).expect("open"),
    );
    let size = one.fbioget_fscreeninfo().expect("fix").smem_len;
    assert_eq!(size, 1024 * 768 * 4 * 2);
    let shared = libc::MAP_SHARED as u32;
    let (fd, offset) = one.map(4096, 4096, 3, shared).expect("mapped");
    assert_eq!(offset, 4096);
    let mapped = SteadyMemory::map(&fd, 8192).expect("mapped");
    put(&*other, |var| {
        (var.xres, var.yres, var.xres_virtual, var.bits_per_pixel) = (320, 200, 320, 8)
    })
    .expect("a mode");
    assert_eq!(one.fbioget_fscreeninfo().expect("fix").line_length, 320);
    mapped.write(0, &[15]);
    assert_eq!(screen.picture().expect("a picture").rgb[..4], [255, 255, 255, 0]);
    let map = ColorMap {
        start: 15,
        red: vec![0x1234],
        green: vec![0x5678],
        blue: vec![0x9abc],
        transp: None,
    };
    assert_eq!(other.fbioputcmap(&map), Ok(()));
    assert_eq!(screen.picture().expect("a picture").rgb[..3], [0x12, 0x56, 0x9a]);
    let size = u64::from(size);
    for (offset, length) in [
        (0, size + 1),
        (size, 4096),
        (4096, u64::MAX),
        (u64::MAX - 4095, 4096),
    ] {
        assert_eq!(one.map(offset, length, 1, shared).err(), Some(Errno::EINVAL));
    }
    let (key, _) = screen.memory().expect("memory");
    let stat = rustix::fs::fstat(&fd).expect("stat");
    assert_eq!(key, (stat.st_dev, stat.st_ino));
}

#[test]
fn what_has_no_meaning_here_is_refused() {
    let screen = Screen::new(options(None, 32), None).expect("a screen");
    let file = screen.open(libc::O_RDONLY).expect("open");
    assert_eq!(
        file.fbioget_con2fbmap(&mut Con2FbMap::default()),
        Err(Errno::EINVAL)
    );
    assert_eq!(file.fbioput_con2fbmap(&Con2FbMap::default()), Err(Errno::EINVAL));
    assert_eq!(file.dma_buf().err(), Some(Errno::EACCES));
    assert_eq!(file.fbio_waitforvsync(7), Ok(()));
    assert_eq!(file.fbioget_vblank().map(|vblank| vblank.flags), Ok(0x10));
    for (size, depth) in [((8, 7), 32), ((100_000, 100_000), 32), ((640, 480), 33)] {
        assert!(Screen::new(options(Some(size), depth), None).is_err());
    }
}
