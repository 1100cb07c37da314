//! A framebuffer by ioctl, read, write, lseek and mmap, on the real node and on ours in front of it: programs of both sizes
//! say what came of each case, and both must say the same.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::client::{run, run_any};
use crate::daemon::{self, Daemon};
use crate::report::{equal, figure};
use crate::screens::{Picture, Screen};
use crate::setup::{Test, both_real, is_6_1};

/// For the set `screens`.
pub const TESTS: &[(&str, Test)] = &[
    ("fb_ioctls::vfb_says_the_same_to_64_and_32_bits", || {
        ioctls(&vfb()?)
    }),
    ("fb_ioctls::virtio_gpu_says_the_same_to_64_and_32_bits", || {
        ioctls(&Side::of(Screen::Virtio)?)
    }),
    ("fb_ioctls::bochs_says_the_same_to_64_and_32_bits", || {
        ioctls(&Side::of(Screen::Bochs)?)
    }),
    ("fb_ioctls::vfb_reads_writes_seeks_and_maps_the_same", || {
        io(&vfb()?)
    }),
    (
        "fb_ioctls::virtio_gpu_reads_writes_seeks_and_maps_the_same",
        || io(&Side::of(Screen::Virtio)?),
    ),
    ("fb_ioctls::bochs_reads_writes_seeks_and_maps_the_same", || {
        io(&Side::of(Screen::Bochs)?)
    }),
    ("fb_ioctls::dd_copies_the_same", dd),
    ("fb_ioctls::screenshot_is_what_was_written", screenshot),
    ("fb_ioctls::files_are_limited_and_told_of", files),
];

/// For the set `memory`, whose first framebuffer is the card's own memory.
pub const VESA: &[(&str, Test)] = &[
    ("fb_ioctls::vesafb_says_the_same_to_64_and_32_bits", || {
        ioctls(&vesafb()?)
    }),
    ("fb_ioctls::vesafb_reads_writes_seeks_and_maps_the_same", || {
        io(&vesafb()?)
    }),
];

const PATIENCE: Duration = Duration::from_secs(240);

/// A real node and ours.
pub struct Side {
    real: String,
    ours: String,
}

pub fn vfb() -> anyhow::Result<Side> {
    Side::of(Screen::Vfb)
}

fn vesafb() -> anyhow::Result<Side> {
    Side::called("VESA VGA")
}

impl Side {
    fn of(screen: Screen) -> anyhow::Result<Self> {
        Self::called(screen.id())
    }

    /// By `fb_fix_screeninfo.id`.
    fn called(id: &str) -> anyhow::Result<Self> {
        let is_it = |number: &u32| {
            fs::read_to_string(format!("/sys/class/graphics/fb{number}/name"))
                .is_ok_and(|name| name.trim_end() == id)
        };
        let number = (0..32)
            .find(is_it)
            .with_context(|| format!("no framebuffer is called {id}"))?;
        let real = format!("/dev/fb{number}");
        let ours = if both_real() {
            real.clone()
        } else {
            format!("/dev/fb{}", number + 64)
        };
        Ok(Self { real, ours })
    }

    pub fn real(&self) -> &str {
        &self.real
    }

    pub fn ours(&self) -> &str {
        &self.ours
    }

    fn daemon(&self) -> anyhow::Result<(Daemon, NoConsole)> {
        let console = NoConsole::begin()?;
        // Where tests before have started it: programs with the shim ask whoever has the shim's socket, and that one knows
        // of no framebuffer.
        daemon::stop_shared();
        let daemon = Daemon::start(&["--fb", &self.real, "--control", CONTROL])?;
        Ok((daemon, console))
    }
}

const CONTROL: &str = "/tmp/fb_ioctls-control";

/// As long as it lives no console draws on a framebuffer: its cursor would be among the pixels.
pub struct NoConsole(Vec<PathBuf>);

impl NoConsole {
    pub fn begin() -> anyhow::Result<Self> {
        let mut consoles = Vec::new();
        for entry in fs::read_dir("/sys/class/vtconsole")?.flatten() {
            let (name, bind) = (entry.path().join("name"), entry.path().join("bind"));
            let is_bound = fs::read_to_string(&bind).is_ok_and(|bound| bound.trim_end() == "1");
            if is_bound && fs::read_to_string(name)?.contains("frame buffer") {
                fs::write(&bind, "0")?;
                consoles.push(bind);
            }
        }
        Ok(Self(consoles))
    }
}

impl Drop for NoConsole {
    fn drop(&mut self) {
        for bind in &self.0 {
            if let Err(error) = fs::write(bind, "1") {
                eprintln!("{}: {error}", bind.display());
            }
        }
    }
}

/// For LD_PRELOAD of programs of both sizes. Each dynamic linker has its own word for `$LIB`.
fn preload() -> anyhow::Result<String> {
    let shim = std::env::current_dir()?.join("target/shim");
    ensure!(shim.exists(), "there is no {}", shim.display());
    Ok(format!("LD_PRELOAD={}/$LIB/libvidcompat.so", shim.display()))
}

fn says(program: &str, node: &str, more: &[&str], preload: Option<&str>) -> anyhow::Result<Vec<String>> {
    let mut words: Vec<&str> = preload.into_iter().flat_map(|preload| ["env", preload]).collect();
    words.extend([program, node]);
    words.extend(more);
    let text = run(words[0], &words[1..], PATIENCE).with_context(|| format!("{program} on {node}"))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// What `program` says on the real node and on ours: the same. With `shim`, on ours with the client shim.
fn same(side: &Side, program: &str, more: &[&str], shim: bool) -> anyhow::Result<Vec<String>> {
    let preload = preload()?;
    let native = says(program, &side.real, more, None)?;
    let served = says(program, &side.ours, more, shim.then_some(&*preload))?;
    equal(&native, &served).with_context(|| format!("{program} {}", more.join(" ")))?;
    Ok(native)
}

fn ioctls(side: &Side) -> anyhow::Result<()> {
    let _daemon = side.daemon()?;
    let preload = preload()?;
    let mut lines = 0;
    for (program, on_ours) in [
        ("fb_ioctl_cases", &[None, Some(&*preload)][..]),
        ("fb_ioctl_cases-i386", &[None]),
    ] {
        let said = says(program, &side.real, &[], None)?;
        for preload in on_ours {
            let served = says(program, &side.ours, &[], *preload)?;
            equal(&said, &served).with_context(|| format!("{program}, {preload:?}"))?;
            lines += served.len();
        }
        // MPlayer takes whom it succeeds with for an OMAP.
        for line in ["OMAPFB_SYNC_GFX of NULL: ENOTTY", "FBIO_ALLOC of NULL: ENOTTY"] {
            ensure!(
                said.iter().any(|said| said == line),
                "{program} does not say {line}"
            );
        }
    }
    figure(format!(
        "{}: {lines} lines about ioctls, the same as the real one's",
        side.real
    ));
    Ok(())
}

fn io(side: &Side) -> anyhow::Result<()> {
    let _daemon = side.daemon()?;
    let mut lines = 0;
    // On 6.1 (fb_sys_write) a write that crosses the end says ENOSPC although it has written. A long one comes to us in
    // pieces, and the kernel gives the program the sum of those that went well.
    let short: &[&str] = if is_6_1() { &["short"] } else { &[] };
    // Without the shim nobody hears of lseek, and there is no mmap.
    lines += same(side, "fb_io_cases", short, false)?.len();
    lines += same(side, "fb_io_cases-i386", short, false)?.len();
    for program in ["fb_io_cases", "fb_io_cases-i386", "fb_io_cases-i386-time64"] {
        lines += same(side, program, &[&["seek", "map"], short].concat(), true)?.len();
    }
    figure(format!(
        "{}: {lines} lines about read, write, lseek and mmap, the same as the real one's",
        side.real
    ));
    Ok(())
}

/// dd, as people use it: to and from the screen, and with the shim from and to the middle of it.
fn dd() -> anyhow::Result<()> {
    let side = vfb()?;
    let _daemon = side.daemon()?;
    let preload = preload()?;
    let pattern: Vec<u8> = (0..1_000_000_u32)
        .map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect();
    fs::write("/tmp/pattern", &pattern)?;
    let whole = |node: &str| fs::read(node).with_context(|| node.to_owned());
    let size = whole(&side.real)?.len();
    let blank = || fs::write(&side.real, vec![0; size]).context("the real node");
    let copy = |node: &str, words: &[&str], shim: bool| {
        let words: Vec<String> = words.iter().map(|word| word.replace("NODE", node)).collect();
        let mut all: Vec<&str> = if shim { vec!["env", &preload] } else { vec![] };
        all.push("dd");
        all.extend(words.iter().map(String::as_str));
        let (status, text) = run_any(all[0], &all[1..], PATIENCE)?;
        // How many there were, and not how long it took.
        let counts: Vec<String> = text
            .lines()
            .filter(|line| !line.contains("copied"))
            .map(str::to_owned)
            .collect();
        anyhow::Ok((
            status.code(),
            counts
                .into_iter()
                .map(|line| line.replace(node, "NODE"))
                .collect::<Vec<_>>(),
        ))
    };
    for (words, shim) in [
        (&["if=/tmp/pattern", "of=NODE", "bs=64k"][..], false),
        (&["if=/tmp/pattern", "of=NODE", "bs=999"], false),
        (&["if=/dev/zero", "of=NODE", "bs=1M"], false),
        (&["if=/tmp/pattern", "of=NODE", "bs=1000", "seek=123"], true),
        (
            &[
                "if=/tmp/pattern",
                "of=NODE",
                "bs=4k",
                "seek=5",
                "count=7",
                "conv=notrunc",
            ],
            true,
        ),
        (&["if=/tmp/pattern", "of=NODE", "bs=1000", "seek=100000"], true),
    ] {
        blank()?;
        let native = (copy(&side.real, words, false)?, whole(&side.real)?);
        blank()?;
        let served = (copy(&side.ours, words, shim)?, whole(&side.real)?);
        ensure!(
            native.0 == served.0,
            "dd {words:?}: {:?} and {:?}",
            native.0,
            served.0
        );
        ensure!(native.1 == served.1, "dd {words:?}: other pixels");
        ensure!(
            words[0] == "if=/dev/zero"
                || words.contains(&"seek=100000")
                || native.1.iter().any(|byte| *byte != 0)
        );
    }
    fs::write(
        &side.real,
        [&pattern[..], &vec![7; size - pattern.len()]].concat(),
    )?;
    for (words, shim) in [
        (&["if=NODE", "of=/tmp/copy", "bs=100k"][..], false),
        (&["if=NODE", "of=/tmp/copy", "bs=777", "count=1000"], false),
        (
            &["if=NODE", "of=/tmp/copy", "bs=1000", "skip=500", "count=900"],
            true,
        ),
        (&["if=NODE", "of=/tmp/copy", "bs=64k", "skip=1000"], true),
    ] {
        let native = (copy(&side.real, words, false)?, fs::read("/tmp/copy")?);
        let served = (copy(&side.ours, words, shim)?, fs::read("/tmp/copy")?);
        ensure!(
            native == served,
            "dd {words:?}: {:?} and {:?}",
            native.0,
            served.0
        );
    }
    Ok(())
}

/// `vidcompat screenshot` of a real framebuffer.
fn screenshot() -> anyhow::Result<()> {
    let side = Side::of(Screen::Virtio)?;
    if both_real() {
        return Ok(());
    }
    let _daemon = side.daemon()?;
    let size = fs::read(&side.real)?.len();
    let pixels: Vec<u8> = (0..size)
        .map(|at| if at % 4 == 3 { 0 } else { (at / 7).to_le_bytes()[0] })
        .collect();
    fs::write(&side.ours, &pixels)?;
    let file = "/tmp/fb_ioctls.png";
    run(
        "vidcompat",
        &["screenshot", "--control", CONTROL, "--fb", &side.ours, file],
        PATIENCE,
    )?;
    let taken = Picture::from_png(file)?;
    let bytes_of_line = size / taken.height;
    let rgb = pixels
        .chunks_exact(bytes_of_line)
        .flat_map(|line| line[..taken.width * 4].chunks_exact(4))
        .flat_map(|pixel| [pixel[2], pixel[1], pixel[0]]);
    let right = Picture {
        width: 1280,
        height: 800,
        rgb: rgb.collect(),
    };
    taken.must_be(&right)?;
    Ok(())
}

fn files() -> anyhow::Result<()> {
    if both_real() {
        return Ok(());
    }
    let side = vfb()?;
    let (daemon, _console) = side.daemon()?;
    let before = daemon.resources()?;
    let open = || fs::File::options().read(true).write(true).open(&side.ours);
    let all: Vec<_> = (0..256)
        .map(|_| open())
        .collect::<Result<_, _>>()
        .context("256 files")?;
    let refused = open().err().and_then(|error| error.raw_os_error());
    ensure!(refused == Some(23), "another one: {refused:?} and not ENFILE");
    let status = run("vidcompat", &["status", "--control", CONTROL], PATIENCE)?;
    let us = format!("{}", std::process::id());
    ensure!(
        status.contains(&us),
        "status does not name process {us}:\n{status}"
    );
    drop(all);
    ensure!(open().is_ok(), "after closing them");
    let after = daemon.resources()?;
    ensure!(
        before.fds == after.fds,
        "{:?} and then {:?}",
        before.fds,
        after.fds
    );
    Ok(())
}
