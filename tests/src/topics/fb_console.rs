//! A framebuffer of ours on a card that has the kernel's console on it: the console comes back however we end, and whoever
//! else has the card is left in peace.
//!
//! What a person sees is told by QEMU's pictures, and who has made it by debugfs. The console is that of virtio-gpu, and for
//! the time of a test that of bochs.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use vidcompat_proto::abi::fb::{Con2FbMap, VarScreenInfo};

use crate::daemon::Daemon;
use crate::report::figure;
use crate::rival::{self, Card};
use crate::screens::{Picture, Screen, fix, put_var, var};
use crate::setup::{Test, is_long};
use crate::{helper, sys};

pub const TESTS: &[(&str, Test)] = &[
    ("fb_console::comes_back_at_the_last_close", || on_each(last_close)),
    ("fb_console::comes_back_at_sigterm", || on_each(sigterm)),
    ("fb_console::comes_back_when_we_are_killed", || {
        on(Screen::Virtio, |console| killed(console, 50))
    }),
    // In two, as each may take no more than two minutes: together 100 times.
    ("fb_console::comes_back_when_we_are_killed_again", || {
        on(Screen::Virtio, |console| killed(console, 50))
    }),
    ("fb_console::comes_back_when_we_are_killed_on_bochs", || {
        on(Screen::Bochs, |console| killed(console, 25))
    }),
    ("fb_console::a_compositor_is_left_in_peace", || {
        on_each(compositor)
    }),
    ("fb_console::another_terminal_shows_its_text", || {
        on_each(other_terminal)
    }),
    ("fb_console::a_dark_console_stays_dark", || on_each(dark_console)),
];

const FBIOPUT_CON2FBMAP: u64 = 0x4610;
const FBIOPAN_DISPLAY: u64 = 0x4606;
/// What we show.
const OURS: [u8; 3] = [0xd0, 0x30, 0x90];
const TEXT: &str = "\x1b[?25l\x1b[2J\x1b[Hthis is the console\r\n";
/// As fbcon is drawn after 50 ms at the latest, and we look four times a second whether it is our turn.
const PATIENCE: Duration = Duration::from_secs(8);

fn on_each(test: fn(&Console) -> anyhow::Result<()>) -> anyhow::Result<()> {
    on(Screen::Virtio, test)?;
    on(Screen::Bochs, test)
}

fn on(screen: Screen, test: fn(&Console) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let console = Console::on(screen)?;
    test(&console).with_context(|| format!("{screen}"))?;
    console
        .must_be_back()
        .with_context(|| format!("{screen}, at last"))
}

/// The first terminals' text on a card.
struct Console {
    screen: Screen,
    before: Picture,
}

impl Console {
    fn on(screen: Screen) -> anyhow::Result<Self> {
        chvt(1)?;
        map_consoles(screen.number()?)?;
        let mut console = Self {
            screen,
            before: Picture::plain(1, 1, [0; 3]),
        };
        print(1, TEXT)?;
        sleep(Duration::from_millis(500));
        console.before = console.look()?;
        // So that the picture is worth comparing.
        ensure!(console.before.colors(2) == 2, "no text: {:?}", console.before);
        Ok(console)
    }

    fn look(&self) -> anyhow::Result<Picture> {
        self.screen
            .picture(&format!("console-{}", self.screen.device().context("a card")?))
    }

    fn must_show(&self, right: &Picture) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.look()?.must_be(right) {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > end => return Err(error),
                Err(_) => sleep(Duration::from_millis(50)),
            }
        }
    }

    /// It is to be seen as before, and what is written to it, too.
    fn must_be_back(&self) -> anyhow::Result<()> {
        self.must_show(&self.before)
            .context("the console has not come back")?;
        print(1, "and alive")?;
        let end = Instant::now() + PATIENCE;
        while self.look()? == self.before {
            ensure!(Instant::now() < end, "the console is not alive");
        }
        print(1, TEXT)?;
        self.must_show(&self.before).context("the console is not cleared")
    }

    fn must_show_color(&self, color: [u8; 3]) -> anyhow::Result<()> {
        self.must_show(&Picture::plain(self.before.width, self.before.height, color))
    }

    fn daemon(&self) -> anyhow::Result<Daemon> {
        Daemon::start(&["--fb", &format!("kms:{}", self.screen.card()?.display())])
    }

    /// Our node, with our picture on the screen.
    fn taken(&self) -> anyhow::Result<File> {
        let fb = self.open()?;
        self.draw(&fb)?;
        self.must_show_color(OURS).context("our picture")?;
        Ok(fb)
    }

    fn open(&self) -> anyhow::Result<File> {
        let node = self.screen.ours()?;
        let fb = File::options().read(true).write(true).open(&node);
        fb.with_context(|| node.display().to_string())
    }

    fn draw(&self, fb: &File) -> anyhow::Result<()> {
        let [red, green, blue] = OURS;
        let bytes = [blue, green, red, 0].repeat(self.before.width * self.before.height);
        fb.write_all_at(&bytes, 0).context("write")
    }

    /// `[fbcon]`, or the program whose picture is shown.
    fn painter(&self) -> anyhow::Result<String> {
        Card::painter(&self.screen.card()?)
    }
}

impl Drop for Console {
    /// The other tests have it on the first card.
    fn drop(&mut self) {
        let _ = chvt(1);
        let _ = Screen::Virtio.number().and_then(map_consoles);
    }
}

fn map_consoles(framebuffer: u32) -> anyhow::Result<()> {
    let fb = File::open(format!("/dev/fb{framebuffer}"))?;
    for console in [1, 2] {
        let mut map = Con2FbMap { console, framebuffer };
        sys::ioctl(&fb, FBIOPUT_CON2FBMAP, &mut map).with_context(|| format!("console {console}"))?;
    }
    Ok(())
}

fn print(terminal: u32, text: &str) -> anyhow::Result<()> {
    let mut tty = File::options().write(true).open(format!("/dev/tty{terminal}"))?;
    Ok(tty.write_all(text.as_bytes())?)
}

fn chvt(terminal: u32) -> anyhow::Result<()> {
    let ended = Command::new("/run/guest/busybox")
        .args(["chvt", &terminal.to_string()])
        .status()?;
    ensure!(ended.success(), "chvt {terminal}: {ended}");
    Ok(())
}

fn last_close(console: &Console) -> anyhow::Result<()> {
    let _daemon = console.daemon()?;
    let first = console.taken()?;
    let second = console.open()?;
    drop(first);
    sleep(Duration::from_millis(500));
    console.must_show_color(OURS).context("one file is still open")?;
    drop(second);
    console.must_be_back()?;
    // It was looked at, and nothing more.
    let reader = console.open()?;
    fix(&reader)?;
    var(&reader)?;
    sleep(Duration::from_millis(500));
    ensure!(console.painter()? == "[fbcon]", "taken for a question");
    drop(reader);
    drop(console.taken()?);
    console.must_be_back().context("the second time")
}

fn sigterm(console: &Console) -> anyhow::Result<()> {
    let mut daemon = console.daemon()?;
    let fb = console.taken()?;
    let ended = daemon.end(Signal::SIGTERM, Duration::from_secs(10))?;
    ensure!(ended.success(), "{ended}");
    console.must_be_back()?;
    drop(fb);
    Ok(())
}

/// Changes modes, pans and writes until the node is no more.
fn be_busy(fb: &File, acts: &AtomicUsize, stop: &AtomicBool) {
    let Ok(first) = var(fb) else { return };
    let modes: [(u32, u32, u32); 4] = [
        (first.xres, first.yres, 32),
        (first.xres, first.yres, 16),
        (1024, 768, 32),
        (640, 480, 8),
    ];
    let piece = vec![0x55; 40_000];
    for (at, (xres, yres, bits)) in modes.iter().copied().cycle().enumerate() {
        let mut wanted = VarScreenInfo {
            xres,
            yres,
            xres_virtual: xres,
            yres_virtual: yres * 2,
            bits_per_pixel: bits,
            ..first
        };
        for step in 0..6 {
            let done = match step {
                0 => put_var(fb, &mut wanted).err(),
                2 | 4 => fb
                    .write_all_at(&piece, 4096 * (at as u64 % 50))
                    .err()
                    .and_then(|error| error.raw_os_error().map(nix::errno::Errno::from_raw)),
                _ => {
                    wanted.yoffset = (yres / 5) * step;
                    sys::ioctl(fb, FBIOPAN_DISPLAY, &mut wanted).err()
                }
            };
            if stop.load(Ordering::Relaxed) || done.is_some_and(is_gone) {
                return;
            }
            acts.fetch_add(usize::from(done.is_none()), Ordering::Relaxed);
        }
    }
}

fn is_gone(error: nix::errno::Errno) -> bool {
    matches!(
        error,
        nix::errno::Errno::ECONNABORTED | nix::errno::Errno::ENOTCONN | nix::errno::Errno::ENODEV
    )
}

/// Killed so many times at random moments of mode sets, flips and pans; long runs take four times as many.
fn killed(console: &Console, times: usize) -> anyhow::Result<()> {
    let times = if is_long() { times * 4 } else { times };
    let (acts, mut shown, mut seen) = (AtomicUsize::new(0), 0, std::collections::BTreeSet::new());
    for time in 0..times {
        let mut daemon = console.daemon()?;
        let fb = console.open()?;
        let stop = AtomicBool::new(false);
        let began = acts.load(Ordering::Relaxed);
        let random = rustix_random()?;
        thread::scope(|scope| -> anyhow::Result<()> {
            scope.spawn(|| be_busy(&fb, &acts, &stop));
            // Some are killed while they take the screen, most later.
            let first = Instant::now();
            while random % 5 != 0 && acts.load(Ordering::Relaxed) == began && first.elapsed() < PATIENCE {
                sleep(Duration::from_millis(1));
            }
            sleep(Duration::from_micros(u64::from(random % 400_000)));
            let painter = console.painter()?;
            shown += usize::from(painter != "[fbcon]");
            seen.insert(painter);
            let ended = daemon.end(Signal::SIGKILL, Duration::from_secs(10));
            stop.store(true, Ordering::Relaxed);
            ended.map(drop)
        })?;
        drop(fb);
        console
            .must_show(&console.before)
            .with_context(|| format!("killed for the {time}th time"))?;
        if time % 10 == 9 {
            console
                .must_be_back()
                .with_context(|| format!("killed for the {time}th time"))?;
        }
    }
    let acts = acts.into_inner();
    figure(format!(
        "{}: killed {times} times, {shown} times with a picture of ours ({seen:?}), after {acts} acts",
        console.screen
    ));
    ensure!(shown * 2 > times, "only {shown} of {times} had the screen");
    ensure!(acts > times * 5, "only {acts} acts");
    Ok(())
}

fn rustix_random() -> anyhow::Result<u32> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u32::from_ne_bytes(bytes))
}

/// Another program that is the card's master.
struct Rival {
    child: Child,
    stdin: Option<ChildStdin>,
    said: BufReader<std::process::ChildStdout>,
}

impl Rival {
    fn start(console: &Console) -> anyhow::Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .args([helper::ARGUMENT, "master"])
            .arg(console.screen.card()?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        let mut said = BufReader::new(child.stdout.take().context("no pipe")?);
        let mut line = String::new();
        said.read_line(&mut line)?;
        ensure!(line.trim() == "shown", "{line}");
        Ok(Self { child, stdin, said })
    }

    /// Ends it: was anything taken from it?
    fn end(mut self) -> anyhow::Result<()> {
        drop(self.stdin.take());
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        let ended = self.child.wait()?;
        ensure!(ended.success(), "the other master: {line}");
        figure(format!("another master: {}", line.trim()));
        Ok(())
    }
}

fn compositor(console: &Console) -> anyhow::Result<()> {
    let _daemon = console.daemon()?;
    // It comes while we are shown.
    let fb = console.taken()?;
    let rival = Rival::start(console)?;
    console
        .must_show_color(rival::COLOR)
        .context("it comes after us")?;
    for _ in 0..20 {
        console.draw(&fb)?;
        let mut mode = var(&fb)?;
        put_var(&fb, &mut mode)?;
        sleep(Duration::from_millis(50));
    }
    console.must_show_color(rival::COLOR).context("while we draw")?;
    rival.end()?;
    console.must_show_color(OURS).context("after it has gone")?;
    drop(fb);
    console.must_be_back()?;
    // It was there before.
    let rival = Rival::start(console)?;
    let fb = console.open()?;
    console.draw(&fb)?;
    sleep(Duration::from_millis(1500));
    console
        .must_show_color(rival::COLOR)
        .context("it was there before us")?;
    rival.end()?;
    console
        .must_show_color(OURS)
        .context("after the first one has gone")?;
    // And we go while it is there.
    let rival = Rival::start(console)?;
    drop(fb);
    sleep(Duration::from_millis(1000));
    console.must_show_color(rival::COLOR).context("we have gone")?;
    rival.end()?;
    console.must_be_back()
}

fn other_terminal(console: &Console) -> anyhow::Result<()> {
    chvt(2)?;
    print(2, "\x1b[?25l\x1b[2J\x1b[Hanother terminal\r\nwith more text\r\n")?;
    sleep(Duration::from_millis(500));
    let second = console.look()?;
    ensure!(second != console.before, "the terminals look the same");
    chvt(1)?;
    console.must_show(&console.before)?;

    let daemon = console.daemon()?;
    let fb = console.taken()?;
    for _ in 0..3 {
        chvt(2)?;
        console.must_show(&second).context("the second terminal")?;
        console.draw(&fb)?;
        sleep(Duration::from_millis(700));
        console.must_show(&second).context("while we draw")?;
        chvt(1)?;
        console.must_show_color(OURS).context("back on ours")?;
    }
    // Hidden, and nothing to do.
    chvt(2)?;
    console.must_show(&second)?;
    sleep(Duration::from_secs(1));
    let before = cpu_ticks(&daemon)?;
    sleep(Duration::from_secs(4));
    let spent = cpu_ticks(&daemon)? - before;
    figure(format!(
        "{}: hidden for 4 s, {spent} ticks of 10 ms of CPU",
        console.screen
    ));
    ensure!(spent < 60, "{spent} ticks of CPU in 4 s while hidden");
    // The last file is closed while the other terminal is shown.
    drop(fb);
    sleep(Duration::from_millis(500));
    console.must_show(&second).context("closed while hidden")?;
    chvt(1)?;
    console.must_be_back()
}

/// User and system time of a daemon, 1/100 s.
fn cpu_ticks(daemon: &Daemon) -> anyhow::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid()))?;
    let (_, rest) = stat.rsplit_once(')').context("stat")?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut next = || -> anyhow::Result<u64> { Ok(fields.next().context("stat")?.parse()?) };
    Ok(next()? + next()?)
}

fn dark_console(console: &Console) -> anyhow::Result<()> {
    let blank = |how: &str| -> anyhow::Result<()> {
        let tty = File::options().read(true).write(true).open("/dev/tty1")?;
        let ended = Command::new("setterm")
            .args(["--term", "linux", "--blank", how])
            .stdin(tty.try_clone()?)
            .stdout(tty)
            .status()?;
        ensure!(ended.success(), "setterm --blank {how}: {ended}");
        Ok(())
    };
    let _daemon = console.daemon()?;
    let fb = console.taken()?;
    blank("force")?;
    for _ in 0..10 {
        console.draw(&fb)?;
        sleep(Duration::from_millis(100));
    }
    let dark = is_dark(console)?;
    ensure!(dark, "the monitor was switched on by drawing");
    blank("poke")?;
    console.must_show_color(OURS).context("after it was woken")?;
    ensure!(!is_dark(console)?, "still dark");
    drop(fb);
    console.must_be_back()
}

fn is_dark(console: &Console) -> anyhow::Result<bool> {
    let card = console.screen.card()?;
    let name = card
        .file_name()
        .and_then(|name| name.to_str())
        .context("a card")?
        .to_owned();
    for entry in fs::read_dir(format!("/sys/class/drm/{name}"))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(&name) {
            return Ok(fs::read_to_string(entry.path().join("dpms"))?.trim() != "On");
        }
    }
    anyhow::bail!("no connector")
}
