//! Framebuffers of our own making: what programs draw in every format and size is what a person sees, and the rules are
//! fbdev's. Of a screen on a card, QEMU says what is seen; of one that nobody sees, `vidcompat screenshot`.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::errno::Errno;
use vidcompat_proto::abi::fb::{Bitfield, VarScreenInfo};

use crate::client::{AT_ONCE, Client, run};
use crate::daemon::Daemon;
use crate::screens::{self, Picture, Screen};
use crate::setup::Test;
use crate::{shim, sys};

pub const TESTS: &[(&str, Test)] = &[
    ("fb_screen::a_screen_that_nobody_sees_has_every_format", headless),
    ("fb_screen::virtio_gpu_shows_every_format", || {
        shown(Screen::Virtio, "")
    }),
    ("fb_screen::virtio_gpu_shows_a_shadow_in_every_format", || {
        shown(Screen::Virtio, ",shadow")
    }),
    ("fb_screen::bochs_shows_every_format", || shown(Screen::Bochs, "")),
    ("fb_screen::mappings_are_what_the_node_would_allow", mappings),
    (
        "fb_screen::wishes_that_cannot_be_are_refused_and_change_nothing",
        wishes,
    ),
];

const FBIOPUTCMAP: u64 = 0x4605;
const FBIOPAN_DISPLAY: u64 = 0x4606;

/// A format, as a program asks for it: bits, then offset and length of red, green, blue.
type Format = (u32, [(u32, u32); 3]);

const XRGB: Format = (32, [(16, 8), (8, 8), (0, 8)]);
const FORMATS: &[Format] = &[
    XRGB,
    (32, [(0, 8), (8, 8), (16, 8)]),
    (32, [(24, 8), (16, 8), (8, 8)]),
    (32, [(8, 8), (16, 8), (24, 8)]),
    (24, [(16, 8), (8, 8), (0, 8)]),
    (24, [(0, 8), (8, 8), (16, 8)]),
    (16, [(11, 5), (5, 6), (0, 5)]),
    (16, [(10, 5), (5, 5), (0, 5)]),
    (8, [(0, 8), (0, 8), (0, 8)]),
];

/// Something that is different at every place: the value of a pixel, of which as many bits are used as there are.
fn value(x: u32, y: u32, seed: u32) -> u32 {
    (x.wrapping_mul(0x9e37_79b1) ^ y.wrapping_mul(0x85eb_ca6b) ^ seed.wrapping_mul(0xc2b2_ae35))
        .rotate_left(13)
}

/// What `width` x `height` such pixels are in memory, and to a person.
fn drawing(format: Format, (width, height): (u32, u32), line: u32, seed: u32) -> (Vec<u8>, Picture) {
    let bytes = (format.0 / 8) as usize;
    let (mut memory, mut rgb) = (Vec::new(), Vec::new());
    for y in 0..height {
        let start = memory.len();
        for x in 0..width {
            let pixel = value(x, y, seed);
            memory.extend(&pixel.to_le_bytes()[..bytes]);
            rgb.extend(color(format, pixel));
        }
        memory.resize(start + line as usize, 0);
    }
    let picture = Picture {
        width: width as usize,
        height: height as usize,
        rgb,
    };
    (memory, picture)
}

/// The palette that the tests set.
fn entry(index: u32) -> [u8; 3] {
    [index, 255 - index, index ^ 0x55].map(|part| (part & 255) as u8)
}

fn color(format: Format, pixel: u32) -> [u8; 3] {
    if format.0 == 8 {
        return entry(pixel & 255);
    }
    format.1.map(|(offset, length)| {
        let bits = (pixel >> offset & ((1 << length) - 1)) << (8 - length);
        u8::try_from(bits | bits >> length).expect("eight bits")
    })
}

/// A picture of any size in the middle of the hardware's, as many times doubled as it fits.
fn doubled(picture: &Picture, (width, height): (usize, usize)) -> Picture {
    let scale = (width / picture.width).min(height / picture.height);
    let mut rgb = Vec::new();
    for y in 0..picture.height * scale {
        for x in 0..picture.width * scale {
            rgb.extend(picture.at(x / scale, y / scale));
        }
    }
    let large = Picture {
        width: picture.width * scale,
        height: picture.height * scale,
        rgb,
    };
    let mut screen = Picture::plain(width, height, [0; 3]);
    screen.put(&large, (width - large.width) / 2, (height - large.height) / 2);
    screen
}

/// A daemon, its node, and a program that has mapped it.
struct Stage {
    daemon: Daemon,
    path: PathBuf,
    node: File,
    hand: Client,
}

impl Stage {
    fn new(fb: &str, path: &Path) -> anyhow::Result<Self> {
        let daemon = Daemon::start(&["--fb", fb])?;
        let node = File::options().read(true).write(true).open(path)?;
        let (hand, said) = hand(path, "shared")?;
        let size = screens::fix(&node)?.smem_len;
        ensure!(said == format!("mapped {size}"), "{said} of {size} bytes");
        Ok(Self {
            daemon,
            path: path.to_owned(),
            node,
            hand,
        })
    }

    /// Sets a mode as a program does, and says what it has become.
    fn mode(&self, format: Format, (width, height): (u32, u32), lines: u32) -> anyhow::Result<VarScreenInfo> {
        let mut var = screens::var(&self.node)?;
        (var.xres, var.yres, var.xres_virtual, var.yres_virtual) = (width, height, width, lines);
        (var.xoffset, var.yoffset, var.bits_per_pixel) = (0, 0, format.0);
        let field = |(offset, length)| Bitfield {
            offset,
            length,
            msb_right: 0,
        };
        [var.red, var.green, var.blue] = format.1.map(field);
        var.transp = Bitfield::default();
        screens::put_var(&self.node, &mut var).with_context(|| format!("{width}x{height}, {format:?}"))?;
        let became = format.1.map(field);
        ensure!(
            var.bits_per_pixel == format.0 && [var.red, var.green, var.blue] == became,
            "{var:?}"
        );
        ensure!(
            screens::var(&self.node)? == var,
            "FBIOGET_VSCREENINFO says something else"
        );
        let visual = screens::fix(&self.node)?.visual;
        ensure!(visual == if format.0 == 8 { 3 } else { 2 }, "visual {visual}");
        if format.0 == 8 {
            self.palette()?;
        }
        Ok(var)
    }

    fn palette(&self) -> anyhow::Result<()> {
        let pages = sys::Pages::new(4096)?;
        let mut map = Vec::new();
        map.extend(0u32.to_ne_bytes());
        map.extend(256u32.to_ne_bytes());
        for part in 0..3 {
            let at = 64 + part * 512;
            map.extend(pages.at(at).to_ne_bytes());
            let parts = (0..256).flat_map(|index| (u16::from(entry(index)[part]) << 8 | 0xa5).to_ne_bytes());
            pages.write(at, &parts.collect::<Vec<u8>>())?;
        }
        map.extend(0u64.to_ne_bytes());
        pages.write(0, &map)?;
        sys::ioctl_in(&self.node, FBIOPUTCMAP, &pages, 0).context("FBIOPUTCMAP")?;
        Ok(())
    }

    /// Has the program copy these bytes into its mapping.
    fn draw(&mut self, offset: usize, bytes: &[u8]) -> anyhow::Result<()> {
        let file = "/tmp/fb_screen.raw";
        fs::write(file, bytes)?;
        let said = ask(&mut self.hand, &format!("copy {offset} {file}"))?;
        ensure!(said == "done", "{said}");
        Ok(())
    }

    fn pan(&self, mut var: VarScreenInfo, line: u32) -> anyhow::Result<()> {
        var.yoffset = line;
        sys::ioctl(&self.node, FBIOPAN_DISPLAY, &mut var).context("FBIOPAN_DISPLAY")?;
        Ok(())
    }

    fn screenshot(&self) -> anyhow::Result<Picture> {
        let (png, ppm) = ("/tmp/fb_screen.png", "/tmp/fb_screen.ppm");
        let path = self.path.to_str().context("no text")?;
        run("vidcompat", &["screenshot", "--fb", path, png], 2 * AT_ONCE)?;
        run(
            "ffmpeg",
            &["-y", "-v", "error", "-i", png, "-pix_fmt", "rgb24", ppm],
            8 * AT_ONCE,
        )?;
        Picture::from_ppm(&fs::read(ppm)?)
    }
}

/// fb_hand with the shim, and the first line that it says.
fn hand(path: &Path, how: &str) -> anyhow::Result<(Client, String)> {
    let preload = format!("LD_PRELOAD={}", shim::library()?.display());
    let path = path.to_str().context("no text")?;
    let hand = Client::start("env", &[&preload, "fb_hand", path, how])?;
    let said = hand.line()?;
    Ok((hand, said))
}

fn ask(hand: &mut Client, what: &str) -> anyhow::Result<String> {
    hand.say(what)?;
    hand.line()
}

/// What is drawn is seen after 50 ms at most where nobody has told of it, and on a busy emulator when it comes to it.
fn soon(mut right: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let end = Instant::now() + 2 * AT_ONCE;
    loop {
        match right() {
            Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(50)),
            outcome => return outcome,
        }
    }
}

/// Every format: by mapping and, beside what is shown, by write(2), which a pan then shows.
fn play(
    stage: &mut Stage,
    sizes: &[(u32, u32)],
    look: impl Fn(&Stage, &str) -> anyhow::Result<Picture>,
    right: impl Fn(&Picture) -> Picture,
) -> anyhow::Result<()> {
    for (at, format) in FORMATS.iter().enumerate() {
        let size = sizes[at % sizes.len()];
        let what = format!("{}x{} {format:?}", size.0, size.1);
        let seed = u32::try_from(at)?;
        let var = stage.mode(*format, size, size.1 * 2)?;
        let line = screens::fix(&stage.node)?.line_length;
        let (memory, picture) = drawing(*format, size, line, seed);
        stage.draw(0, &memory)?;
        let expected = right(&picture);
        soon(|| look(stage, &format!("screen-{at}-mapped"))?.must_be(&expected))
            .with_context(|| format!("{what}, mapped"))?;
        let (memory, picture) = drawing(*format, size, line, seed + 100);
        stage.node.write_all_at(&memory, u64::from(size.1 * line))?;
        // Once is enough: a picture takes a while.
        if at == 0 {
            let seen = look(stage, &format!("screen-{at}-beside"))?;
            ensure!(
                seen.must_be(&right(&picture)).is_err(),
                "{what}: what is beside is seen"
            );
        }
        stage.pan(var, size.1)?;
        let expected = right(&picture);
        soon(|| look(stage, &format!("screen-{at}-panned"))?.must_be(&expected))
            .with_context(|| format!("{what}, panned"))?;
    }
    Ok(())
}

fn headless() -> anyhow::Result<()> {
    let mut stage = Stage::new("memory:640x480x16,as=20", Path::new("/dev/fb20"))?;
    let var = screens::var(&stage.node)?;
    ensure!(
        (var.xres, var.yres, var.bits_per_pixel) == (640, 480, 16),
        "{var:?}"
    );
    let sizes = [(640, 480), (320, 200), (333, 111)];
    play(&mut stage, &sizes, |stage, _| stage.screenshot(), Picture::clone)
}

fn shown(screen: Screen, options: &str) -> anyhow::Result<()> {
    let card = screen.card()?;
    let fb = format!("kms:{}{options}", card.display());
    let mut stage = Stage::new(&fb, &screen.ours()?)?;
    let sizes = [(1280, 800), (1280, 800), (500, 300), (320, 200)];
    let look = |_: &Stage, name: &str| {
        let device = screen.device().unwrap_or_default();
        screen.picture(&format!("{name}-{device}{}", options.replace(',', "-")))
    };
    play(&mut stage, &sizes, look, |picture| doubled(picture, (1280, 800)))?;
    // What a person sees is also what a screenshot says, in the program's own size.
    let (width, height) = (500, 300);
    stage.mode(XRGB, (width, height), height)?;
    let line = screens::fix(&stage.node)?.line_length;
    let (memory, picture) = drawing(XRGB, (width, height), line, 7);
    stage.draw(0, &memory)?;
    stage
        .screenshot()?
        .must_be(&picture)
        .context("vidcompat screenshot")?;
    // The mapping outlives the node's file, and is watched on.
    ensure!(ask(&mut stage.hand, "close")? == "done", "close");
    drop(std::mem::replace(&mut stage.node, File::open("/dev/null")?));
    let (memory, picture) = drawing(XRGB, (width, height), line, 8);
    stage.draw(0, &memory)?;
    let expected = doubled(&picture, (1280, 800));
    soon(|| look(&stage, "screen-outlived")?.must_be(&expected)).context("after close")?;
    let errors: Vec<_> = stage
        .daemon
        .log()
        .lines()
        // 6.1 has no dma-heap, which only cameras miss.
        .filter(|line| line.contains("WARN") && !line.contains("/dev/dma_heap"))
        .map(str::to_owned)
        .collect();
    ensure!(errors.is_empty(), "{errors:?}");
    Ok(())
}

fn mappings() -> anyhow::Result<()> {
    let bochs = format!("kms:{},as=21", Screen::Bochs.card()?.display());
    for (fb, path) in [("memory:640x480x32,as=20", "/dev/fb20"), (&bochs, "/dev/fb21")] {
        let path = Path::new(path);
        let mut stage = Stage::new(fb, path)?;
        let (mut reader, said) = hand(path, "read")?;
        ensure!(said.starts_with("mapped"), "a reader: {said}");
        let (mut other, said) = hand(path, "shared")?;
        ensure!(said.starts_with("mapped"), "another: {said}");
        let bytes: Vec<u8> = (0..20_000u32).flat_map(u32::to_le_bytes).collect();
        stage.draw(4097, &bytes)?;
        for (name, client) in [("a reader", &mut reader), ("another", &mut other)] {
            soon(|| {
                let said = ask(client, "has 4097 /tmp/fb_screen.raw")?;
                ensure!(said == "yes", "{fb}: {name} sees what was drawn: {said}");
                Ok(())
            })?;
        }
        let mut read = vec![0; bytes.len()];
        stage.node.read_exact_at(&mut read, 4097)?;
        ensure!(read == bytes, "{fb}: read(2)");
        // What is drawn in private is seen by nobody else.
        let (mut private, said) = hand(path, "private")?;
        ensure!(said.starts_with("mapped"), "{fb}: private: {said}");
        ensure!(
            ask(&mut private, "has 4097 /tmp/fb_screen.raw")? == "yes",
            "{fb}: private"
        );
        fs::write("/tmp/fb_screen.private", [0x5a; 5000])?;
        ensure!(
            ask(&mut private, "copy 4097 /tmp/fb_screen.private")? == "done",
            "{fb}: private"
        );
        ensure!(
            ask(&mut private, "has 4097 /tmp/fb_screen.private")? == "yes",
            "{fb}: private"
        );
        let said = ask(&mut other, "has 4097 /tmp/fb_screen.raw")?;
        ensure!(said == "yes", "{fb}: what was drawn in private is seen");
    }
    Ok(())
}

fn wishes() -> anyhow::Result<()> {
    let stage = Stage::new("memory:640x480x32,as=20", Path::new("/dev/fb20"))?;
    let before = screens::var(&stage.node)?;
    type Change = (&'static str, fn(&mut VarScreenInfo));
    let changes: [Change; 8] = [
        ("too wide", |var| var.xres = 641),
        ("too high", |var| var.yres = 481),
        ("too small", |var| var.xres = 7),
        ("33 bits", |var| var.bits_per_pixel = 33),
        ("more lines than there is memory", |var| {
            var.yres_virtual = 100_000
        }),
        ("grey", |var| var.grayscale = 1),
        ("not standard", |var| var.nonstd = 1),
        ("overflowing", |var| {
            (var.xres_virtual, var.yres_virtual) = (1 << 16, 1 << 16)
        }),
    ];
    for (what, change) in changes {
        let mut var = before;
        change(&mut var);
        let answer = screens::put_var(&stage.node, &mut var);
        ensure!(answer == Err(Errno::EINVAL), "{what}: {answer:?}");
        ensure!(
            screens::var(&stage.node)? == before,
            "{what}: it changed something"
        );
    }
    // FB_ACTIVATE_TEST
    let mut var = before;
    (var.xres, var.yres, var.bits_per_pixel, var.activate) = (320, 200, 15, 2);
    screens::put_var(&stage.node, &mut var)?;
    ensure!((var.bits_per_pixel, var.green.length) == (16, 5), "{var:?}");
    ensure!(
        screens::var(&stage.node)? == before,
        "a question changed something"
    );
    for (x, y, vmode) in [(1, 0, 0), (0, 1, 0), (0, 1, 256)] {
        let mut var = before;
        (var.xoffset, var.yoffset, var.vmode) = (x, y, vmode);
        let answer = sys::ioctl(&stage.node, FBIOPAN_DISPLAY, &mut var);
        ensure!(answer == Err(Errno::EINVAL), "pan to {x},{y}: {answer:?}");
    }
    Ok(())
}
