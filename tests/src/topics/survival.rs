//! The daemon is killed, again and again and at any moment, under programs that stream. On Linux 6.9 and later none of them
//! sees an error or a wrong byte: what is missing is frames that the driver gave to nobody. On older kernels each ends with
//! an error within a second, and the next run works.
//!
//! Every frame is compared with one of the real node. Its upper rows hold time and number, so that no two frames are
//! alike: one that comes twice, or half, is seen.

use std::cell::Cell;
use std::collections::HashSet;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::programs::gst_words;
use crate::client::{Client, run};
use crate::daemon::{self, Daemon};
use crate::nodes::{Found, Kind, named, vivid};
use crate::picture::Control;
use crate::report::figure;
use crate::setup::{Test, is_6_1, is_long};
use crate::shim::Seat;
use crate::status;
use crate::sys;
use crate::video::{Video, command, ours};

pub const TESTS: &[(&str, Test)] = &[
    ("survival::userptr", || killed("USERPTR", userptr)),
    ("survival::programs_that_map", || killed("MMAP", mapping)),
    ("survival::adopted_memory", || killed("adoption", adopting)),
    ("survival::read", || killed("read", reading)),
    ("survival::every_step_of_a_stream", every_step),
    ("survival::every_step_of_a_program", every_step_of_a_program),
];

/// Of all runs together: 200 on Linux 6.12.
const KILLS: usize = 50;
/// Of a frame, where nobody says another.
const WIDTH: usize = 320;
const HEIGHT: usize = 180;
const FRAME: usize = WIDTH * HEIGHT * 2;
/// Rows that differ in each frame.
const TEXT_ROWS: usize = 64;
/// Frames in a second. Lost ones are counted by the driver.
const RATE: u32 = 15;
const PATIENCE: Duration = Duration::from_secs(30);

/// `struct v4l2_streamparm` of a capture queue.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Rate {
    buf_type: u32,
    capability: u32,
    mode: u32,
    /// Seconds: numerator, denominator.
    interval: [u32; 2],
    rest: [u32; 46],
}

/// What a program makes is compared with this.
enum Expect {
    /// The program itself says so.
    Itself,
    /// Frames of a camera: this one, but for the upper rows.
    Frames(Vec<u8>),
    /// Exactly this.
    Bytes(Vec<u8>),
}

/// The devices: two cameras, vmalloc and dma-contig; an output; a camera with planes; vim2m.
struct Devices {
    camera: Found,
    contig: Found,
    output: Found,
    planar: Found,
    vim2m: Found,
}

impl Devices {
    fn find() -> anyhow::Result<Self> {
        Ok(Self {
            camera: vivid(0, Kind::VideoCapture)?,
            contig: vivid(1, Kind::VideoCapture)?,
            output: vivid(1, Kind::VideoOutput)?,
            planar: vivid(2, Kind::VideoCapture)?,
            vim2m: named("vim2m")?,
        })
    }

    fn all(&self) -> [&Found; 5] {
        [
            &self.camera,
            &self.contig,
            &self.output,
            &self.planar,
            &self.vim2m,
        ]
    }

    /// The cameras' pictures have numbers, at a rate that a busy machine keeps up with.
    fn prepare(&self) -> anyhow::Result<Vec<Control>> {
        let mut controls = Vec::new();
        for camera in [&self.camera, &self.contig, &self.planar] {
            let path = camera.real().display().to_string();
            let format = format!("width={WIDTH},height={HEIGHT},pixelformat=YUYV");
            run("v4l2-ctl", &["-d", &path, "-v", &format], Duration::from_secs(10))?;
            let mut rate = Rate {
                // V4L2_BUF_TYPE_VIDEO_CAPTURE_MPLANE, V4L2_BUF_TYPE_VIDEO_CAPTURE
                buf_type: if camera.is_mplane() { 9 } else { 1 },
                interval: [1, RATE],
                ..Rate::new_zeroed()
            };
            let video = Video::at(&camera.real(), 0)?;
            sys::ioctl(&video, command::S_PARM, &mut rate).context("S_PARM")?;
            controls.push(Control::set(camera.number()?, "osd_text_mode", 1, 2)?);
        }
        Ok(controls)
    }
}

/// One frame of the real camera.
fn native(camera: &Found) -> anyhow::Result<Vec<u8>> {
    let (path, file) = (camera.real().display().to_string(), "/tmp/survival-native");
    let to = format!("--stream-to={file}");
    let args = ["-d", &path, "--stream-mmap=3", "--stream-count=1", &to];
    run("v4l2-ctl", &args, PATIENCE)?;
    let frame = fs::read(file)?;
    ensure!(
        frame.len() == FRAME,
        "{} bytes in a frame of {camera}",
        frame.len()
    );
    Ok(frame)
}

/// GStreamer imports only where somebody downstream has memory to give.
const USERPTR_GST: &str = "gst-launch-1.0 -q v4l2src device=NODE io-mode=userptr";
const TO_RGB: &str = "! video/x-raw,format=YUY2,width=320,height=180 ! videoconvert ! video/x-raw,format=RGB ! \
                      filesink location=FILE";

/// The same in RGB, by GStreamer.
fn native_rgb(camera: &Found) -> anyhow::Result<Vec<u8>> {
    let pipeline = format!("{USERPTR_GST} num-buffers=COUNT {TO_RGB}");
    let plan = plan(camera, Seat::real(camera), &pipeline, Expect::Itself);
    let status = plan.start(1)?.end(PATIENCE)?;
    let frame = fs::read(plan.file())?;
    ensure!(
        status.success() && frame.len() == WIDTH * HEIGHT * 3,
        "{status}, {} bytes in a frame of {camera}",
        frame.len()
    );
    Ok(frame)
}

/// A daemon under a keeper, which starts the next one.
struct Kept {
    keeper: Daemon,
    kills: Cell<usize>,
    /// The one that was killed last: until its keeper has noticed, it is still there.
    last: Cell<Option<Pid>>,
}

impl Kept {
    /// One that dies where [`DIE_AT`] says.
    fn start_mortal(devices: &[&Found]) -> anyhow::Result<Self> {
        let library = std::env::current_dir()?.join("target/clients/die_at.so");
        let library = library.to_str().context("a path")?;
        Self::start_with(devices, &["--confine=off"], &[("LD_PRELOAD", library)])
    }

    fn start(devices: &[&Found]) -> anyhow::Result<Self> {
        Self::start_with(devices, &[], &[])
    }

    fn start_with(devices: &[&Found], more: &[&str], environment: &[(&str, &str)]) -> anyhow::Result<Self> {
        let devices: Vec<String> = devices
            .iter()
            .map(|device| device.real().display().to_string())
            .collect();
        let devices = devices.iter().flat_map(|device| ["--device", device]);
        let args: Vec<&str> = ["--keep"]
            .into_iter()
            .chain(more.iter().copied())
            .chain(devices)
            .collect();
        Ok(Self {
            keeper: Daemon::start_with(&args, environment)?,
            kills: Cell::new(0),
            last: Cell::new(None),
        })
    }

    /// The daemon's process, if there is one at the moment.
    fn daemon(&self) -> Option<Pid> {
        let keeper = self.keeper.pid();
        let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).ok()?;
        let child = children.split_ascii_whitespace().next()?;
        child.parse().ok().map(Pid::from_raw)
    }

    /// How often a daemon has died.
    fn deaths(&self) -> usize {
        let log = self.keeper.log();
        log.lines()
            .filter(|line| line.contains("killed by SIGKILL"))
            .count()
    }

    /// The next daemon dies at a certain call: see tests/clients/preload/die_at.c. It gets ready first, or dies on the way.
    fn arm(&self, at: &str) -> anyhow::Result<()> {
        // The keeper gives up where each daemon dies right after it was ready.
        thread::sleep(Duration::from_millis(80));
        fs::write(DIE_AT, at)?;
        self.kill(false)?;
        let begun = Instant::now();
        while fs::exists(DIE_AT)? {
            ensure!(
                begun.elapsed() < PATIENCE,
                "no daemon begins: {}",
                self.keeper.log()
            );
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn until_ready(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !self.is_ready() {
            ensure!(
                begun.elapsed() < PATIENCE,
                "no daemon gets ready: {}",
                self.keeper.log()
            );
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Has the daemon that was started after the last kill said that it is ready?
    fn is_ready(&self) -> bool {
        let log = self.keeper.log();
        let last = log.rsplit("killed by SIGKILL").next().unwrap_or_default();
        self.deaths() == self.kills.get() && last.lines().any(|line| line == "ready")
    }

    /// Kills the daemon. With `until_ready` the next one is waited for: how long that takes.
    fn kill(&self, until_ready: bool) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let kills = || {
            let daemon = self.daemon().filter(|daemon| Some(*daemon) != self.last.get());
            self.last.set(daemon.or(self.last.get()));
            daemon.is_some_and(|daemon| kill(daemon, Signal::SIGKILL).is_ok())
        };
        while !kills() {
            ensure!(
                begun.elapsed() < PATIENCE,
                "there is no daemon any more: {}",
                self.keeper.log()
            );
            thread::sleep(Duration::from_millis(1));
        }
        self.kills.set(self.kills.get() + 1);
        let killed = Instant::now();
        while until_ready && !self.is_ready() {
            ensure!(
                killed.elapsed() < PATIENCE,
                "no daemon gets ready: {}",
                self.keeper.log()
            );
            thread::sleep(Duration::from_millis(1));
        }
        Ok(if until_ready {
            killed.elapsed()
        } else {
            Duration::ZERO
        })
    }
}

/// A program that streams, and how to start it again when it has come to its end before the last kill.
struct Plan<'a> {
    node: &'a Found,
    seat: Seat,
    /// Words, `NODE` being the node and `FILE` where frames are put.
    call: String,
    expect: Expect,
}

/// Frames of a program that counts them; at [`RATE`] a few seconds.
const COUNT: usize = 60;
/// Of one that does not live to count them, and of the next.
const ENDLESS: usize = 10_000;
const FEW: usize = 15;

fn plan<'a>(node: &'a Found, seat: Seat, call: &str, expect: Expect) -> Plan<'a> {
    Plan {
        node,
        seat,
        call: call.to_owned(),
        expect,
    }
}

impl Plan<'_> {
    fn file(&self) -> String {
        format!("/tmp/survival-{}", self.node.file)
    }

    fn start(&self, count: usize) -> anyhow::Result<Client> {
        let file = self.file();
        drop(fs::remove_file(&file));
        let call = self.call.replace("FILE", &file);
        let call = call.replace("COUNT3", &(3 * count).to_string());
        let call = call.replace("COUNT", &count.to_string());
        let words: Vec<String> = match call.strip_prefix("gst-launch-1.0 ") {
            Some(pipeline) => gst_words(pipeline)?,
            None => call.split_whitespace().map(str::to_owned).collect(),
        };
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.seat.start(&words)
    }

    /// Waits for its first frames.
    fn until_streaming(&self, client: &mut Client) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let streams = match &self.expect {
                Expect::Itself => client.line_if_any().is_some_and(|line| line == "streaming"),
                _ => fs::metadata(self.file()).is_ok_and(|file| file.len() > 0),
            };
            if streams {
                return Ok(());
            }
            let ended = client.has_ended()?;
            ensure!(
                !ended && begun.elapsed() < PATIENCE,
                "{} {} does not stream (ended: {ended}): {}",
                self.call,
                self.seat.name,
                if ended { client.rest() } else { String::new() }
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The program has ended: as it should, and what it has made is right.
    fn check(&self, client: &mut Client, count: usize, seen: &mut Seen) -> anyhow::Result<()> {
        let status = client.end(PATIENCE);
        let said = client.rest();
        let what = || format!("{} {}: {said}", self.call, self.seat.name);
        let status = status.with_context(what)?;
        ensure!(status.success(), "{status}: {}", what());
        seen.add(&said);
        match &self.expect {
            Expect::Itself => {}
            Expect::Frames(native) => {
                let bytes = fs::read(self.file())?;
                check_frames(&bytes, native, count).with_context(what)?;
                seen.frames += bytes.len() / native.len();
            }
            Expect::Bytes(native) => {
                let bytes = fs::read(self.file())?;
                let differing = bytes.iter().zip(native).position(|(ours, real)| ours != real);
                ensure!(
                    bytes.len() == native.len() && differing.is_none(),
                    "{} bytes instead of {}, differing from {differing:?} on: {}",
                    bytes.len(),
                    native.len(),
                    what()
                );
                seen.frames += M2M_FRAMES;
            }
        }
        Ok(())
    }
}

/// What one program has seen.
#[derive(Debug, Default)]
struct Seen {
    runs: usize,
    frames: usize,
    /// `None`: it tells no numbers.
    lost: Option<u64>,
    /// Milliseconds between two frames.
    longest: u64,
}

impl Seen {
    /// What the program says of itself: survivor's last line, or the numbers of v4l2-ctl --verbose.
    fn add(&mut self, said: &str) {
        self.runs += 1;
        if let Some(line) = said.lines().find(|line| line.starts_with("frames ")) {
            let numbers: Vec<u64> = line
                .split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect();
            if let [frames, lost, longest] = numbers[..] {
                self.frames += usize::try_from(frames).unwrap_or_default();
                *self.lost.get_or_insert(0) += lost;
                self.longest = self.longest.max(longest);
            }
        }
        let number = |line: &str, label| -> Option<u64> {
            line.split(label).nth(1)?.split_whitespace().next()?.parse().ok()
        };
        let sequences: Vec<u64> = said
            .lines()
            .filter(|line| line.contains("dqbuf"))
            .filter_map(|line| number(line, "seq:"))
            .collect();
        for pair in sequences.windows(2) {
            *self.lost.get_or_insert(0) += (pair[1] - pair[0]).saturating_sub(1);
        }
    }
}

/// Every frame is the camera's picture, and none comes twice.
fn check_frames(bytes: &[u8], native: &[u8], count: usize) -> anyhow::Result<()> {
    let size = native.len();
    ensure!(
        bytes.len() == count * size,
        "{} bytes instead of {count} frames",
        bytes.len()
    );
    let text = size / HEIGHT * TEXT_ROWS;
    let mut texts = HashSet::new();
    for (number, frame) in bytes.chunks_exact(size).enumerate() {
        let differing = (text..size).find(|at| frame[*at] != native[*at]);
        ensure!(
            differing.is_none(),
            "frame {number} differs from the real node's from byte {differing:?} on"
        );
        ensure!(texts.insert(&frame[..text]), "frame {number} was there before");
    }
    Ok(())
}

const M2M_INPUT: &str = "/tmp/survival-m2m";
const M2M_FRAMES: usize = 40;

/// What vim2m makes of its input on the real node.
fn m2m_native(vim2m: &Found) -> anyhow::Result<Vec<u8>> {
    let byte = |at: usize| ((at / 3 + at / (WIDTH * HEIGHT * 3) * 5) % 251).to_le_bytes()[0];
    let input: Vec<u8> = (0..M2M_FRAMES * WIDTH * HEIGHT * 3).map(byte).collect();
    fs::write(M2M_INPUT, input)?;
    let (path, file) = (vim2m.real().display().to_string(), "/tmp/survival-m2m-native");
    let args = [
        "-d", &path, "-i", M2M_INPUT, "-o", file, "-F", "RGB3", "-f", "BGR3",
    ];
    run("m2m_userptr", &args, PATIENCE)?;
    let bytes = fs::read(file)?;
    fs::remove_file(file)?;
    ensure!(
        bytes.len() == M2M_FRAMES * WIDTH * HEIGHT * 3,
        "{} bytes",
        bytes.len()
    );
    Ok(bytes)
}

fn userptr(devices: &Devices) -> anyhow::Result<Vec<Plan<'_>>> {
    let Devices {
        camera,
        contig,
        output,
        planar,
        vim2m,
    } = devices;
    Ok(vec![
        plan(
            camera,
            Seat::plain(camera),
            "v4l2-ctl -d NODE --stream-user=4 --stream-count=COUNT --stream-to=FILE --verbose",
            Expect::Frames(native(camera)?),
        ),
        plan(
            contig,
            Seat::plain(contig),
            "survivor NODE userptr",
            Expect::Itself,
        ),
        plan(
            output,
            Seat::plain(output),
            "survivor -p NODE output",
            Expect::Itself,
        ),
        plan(
            planar,
            Seat::plain(planar),
            &format!("{USERPTR_GST} num-buffers=COUNT {TO_RGB}"),
            Expect::Frames(native_rgb(planar)?),
        ),
        plan(
            vim2m,
            Seat::plain(vim2m),
            &format!("m2m_userptr -d NODE -i {M2M_INPUT} -o FILE -F RGB3 -f BGR3"),
            Expect::Bytes(m2m_native(vim2m)?),
        ),
    ])
}

fn mapping(devices: &Devices) -> anyhow::Result<Vec<Plan<'_>>> {
    let Devices {
        camera,
        contig,
        output,
        planar,
        ..
    } = devices;
    Ok(vec![
        plan(
            camera,
            Seat::run(camera),
            "ffmpeg -v error -nostdin -f v4l2 -input_format yuyv422 -video_size 320x180 -i NODE -frames:v COUNT -c copy \
             -f rawvideo -y FILE",
            Expect::Frames(native(camera)?),
        ),
        plan(contig, Seat::run(contig), "survivor -p NODE mmap", Expect::Itself),
        plan(output, Seat::run(output), "survivor NODE output", Expect::Itself),
        plan(
            planar,
            Seat::run(planar),
            "v4l2-ctl -d NODE --stream-mmap=4 --stream-count=COUNT --stream-to=FILE --verbose",
            Expect::Frames(native(planar)?),
        ),
    ])
}

fn adopting(devices: &Devices) -> anyhow::Result<Vec<Plan<'_>>> {
    let Devices {
        camera,
        contig,
        planar,
        ..
    } = devices;
    Ok(vec![
        plan(
            camera,
            Seat::run(camera),
            "survivor -a NODE userptr",
            Expect::Itself,
        ),
        plan(
            contig,
            Seat::run(contig),
            "survivor -a -p NODE userptr",
            Expect::Itself,
        ),
        plan(
            planar,
            Seat::run(planar),
            "gst-launch-1.0 -q v4l2src device=NODE io-mode=mmap num-buffers=COUNT ! video/x-raw,format=YUY2,width=320,height=180 ! filesink location=FILE",
            Expect::Frames(native(planar)?),
        ),
    ])
}

fn reading(devices: &Devices) -> anyhow::Result<Vec<Plan<'_>>> {
    let Devices {
        camera,
        contig,
        planar,
        ..
    } = devices;
    // A third of a frame at a time.
    let dd = format!(
        "dd if=NODE of=FILE iflag=fullblock status=none bs={} count=COUNT3",
        FRAME / 3
    );
    Ok(vec![
        plan(camera, Seat::plain(camera), "survivor NODE read", Expect::Itself),
        plan(contig, Seat::plain(contig), &dd, Expect::Frames(native(contig)?)),
        plan(
            planar,
            Seat::plain(planar),
            "v4l2-ctl -d NODE --stream-user=4 --stream-poll --stream-count=COUNT --stream-to=FILE --verbose",
            Expect::Frames(native(planar)?),
        ),
    ])
}

/// A number below `bound`, by chance.
fn random(bound: u64) -> u64 {
    RandomState::new().hash_one(bound) % bound
}

/// Waits until the device has the program's own memory: counted by the daemon that has arranged it.
fn until_adopted(plan: &Plan<'_>, client: &mut Client) -> anyhow::Result<()> {
    plan.until_streaming(client)?;
    let begun = Instant::now();
    loop {
        let queue = status::queue(ours(plan.node.number()?), client.pid(), "video capture");
        if queue.as_ref().is_ok_and(|queue| queue["adopted"] == 4) {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < PATIENCE,
            "{} is not adopted: {queue:?}",
            plan.call
        );
        thread::sleep(Duration::from_millis(20));
    }
}

/// The daemon dies again and again while all of a plan stream at once.
fn killed(what: &str, plans: fn(&Devices) -> anyhow::Result<Vec<Plan<'_>>>) -> anyhow::Result<()> {
    daemon::stop_shared();
    let devices = Devices::find()?;
    let _controls = devices.prepare()?;
    let plans = plans(&devices)?;
    let kept = Kept::start(&devices.all())?;
    if is_6_1() {
        return ends_at_once(&kept, &plans);
    }
    let mut running = Vec::new();
    for plan in &plans {
        running.push((plan, plan.start(COUNT)?, Seen::default()));
    }
    thread::sleep(Duration::from_millis(500));
    if what == "adoption" {
        for (plan, client, _) in &mut running {
            if plan.call.starts_with("survivor") {
                until_adopted(plan, client)?;
            }
        }
    }
    let kills = if is_long() { 20 * KILLS } else { KILLS };
    let mut down = Duration::ZERO;
    for kill in 0..kills {
        // Half of them while the next daemon begins.
        let most = if kill % 2 == 0 { 60 } else { 400 };
        thread::sleep(Duration::from_millis(random(most)));
        down = down.max(kept.kill(kill % 3 == 2)?);
        for (plan, client, seen) in &mut running {
            if client.has_ended()? {
                plan.check(client, COUNT, seen)
                    .with_context(|| format!("after {} kills", kill + 1))?;
                *client = plan.start(COUNT)?;
            }
        }
    }
    kept.until_ready()?;
    is_told(kills)?;
    for (plan, client, seen) in &mut running {
        client.close_stdin();
        plan.check(client, COUNT, seen).context("after all kills")?;
        figure(format!(
            "{what}, {kills} kills: {} {} on {}: {} frames in {} runs{}{}",
            plan.call.split_whitespace().next().unwrap_or_default(),
            plan.seat.name,
            plan.node,
            seen.frames,
            seen.runs,
            seen.lost.map_or(String::new(), |lost| format!(", {lost} lost")),
            match seen.longest {
                0 => String::new(),
                longest => format!(", at most {longest} ms between two"),
            }
        ));
    }
    figure(format!(
        "{what}, {kills} kills: at most {} ms until a daemon was ready again",
        down.as_millis()
    ));
    Ok(())
}

/// The status tells what became of so many deaths.
fn is_told(kills: usize) -> anyhow::Result<()> {
    let told = status::survival()?;
    let number = |name: &str| {
        told[name]
            .as_u64()
            .with_context(|| format!("no {name} in {told}"))
    };
    let restarts = number("restarts")?;
    // Who dies right when it begins has not begun.
    ensure!(
        told["kept_by"] == "keeper" && restarts > 0 && restarts <= kills as u64,
        "{told} after {kills} kills"
    );
    let resent = number("resent")?;
    ensure!(
        number("restored")? > 0 && number("given_up")? == 0 && resent > 0,
        "{told}"
    );
    figure(format!(
        "status after {kills} kills: {restarts} restarts, {} files went on, {} requests repeated, the last time it took {} us",
        number("restored")?,
        resent,
        number("took_us")?
    ));
    Ok(())
}

/// Without requests that are sent again: each program ends within a second of the kill, and the next run works.
fn ends_at_once(kept: &Kept, plans: &[Plan<'_>]) -> anyhow::Result<()> {
    let mut running = Vec::new();
    for plan in plans {
        running.push((plan, plan.start(ENDLESS)?));
    }
    for (plan, client) in &mut running {
        plan.until_streaming(client)?;
    }
    let killed = Instant::now();
    kept.kill(false)?;
    let mut last = Duration::ZERO;
    for (plan, client) in &mut running {
        let limit = Duration::from_secs(1);
        let left = limit.saturating_sub(killed.elapsed());
        let status = client
            .end(left)
            .with_context(|| format!("{} {}, {limit:?} after the kill", plan.call, plan.seat.name))?;
        last = killed.elapsed();
        // GStreamer and v4l2-ctl end with status 0 after some errors, and say them.
        let said = client.rest();
        ensure!(
            !status.success() || !said.is_empty(),
            "{} has seen no error",
            plan.call
        );
    }
    figure(format!(
        "{} programs have ended {} ms after the kill",
        running.len(),
        last.as_millis()
    ));
    // The nodes are made anew.
    kept.until_ready()?;
    for (plan, client) in &mut running {
        *client = plan.start(FEW)?;
        plan.until_streaming(client)?;
    }
    for (plan, client) in &mut running {
        client.close_stdin();
        plan.check(client, FEW, &mut Seen::default())
            .context("the next run")?;
    }
    Ok(())
}

/// Where the daemon is to die.
const DIE_AT: &str = "/tmp/die-at";

/// Between the device's answer and the client's there are few steps. The daemon dies at each of them, under programs that
/// stream; chance would seldom find them.
fn every_step() -> anyhow::Result<()> {
    if is_6_1() {
        return Ok(());
    }
    daemon::stop_shared();
    let devices = Devices::find()?;
    let _controls = devices.prepare()?;
    let Devices {
        camera,
        contig,
        output,
        ..
    } = &devices;
    let plans = [
        plan(
            camera,
            Seat::plain(camera),
            "survivor NODE userptr",
            Expect::Itself,
        ),
        plan(contig, Seat::run(contig), "survivor -p NODE mmap", Expect::Itself),
        plan(
            output,
            Seat::plain(output),
            "survivor NODE output",
            Expect::Itself,
        ),
    ];
    let kept = Kept::start_mortal(&devices.all())?;
    let mut running = Vec::new();
    for plan in &plans {
        let mut client = plan.start(COUNT)?;
        plan.until_streaming(&mut client)?;
        running.push((plan, client, Seen::default()));
    }
    let most = if is_long() { 20 } else { 4 };
    let mut steps = 0;
    for call in ["pwrite", "writev", "copy", "qbuf", "dqbuf"] {
        for number in 1..=most {
            let at = format!("{call} {number}");
            kept.arm(&at)?;
            kept.kills.set(kept.kills.get() + 1);
            kept.until_ready().with_context(|| at.clone())?;
            steps += 1;
            for (plan, client, _) in &mut running {
                ensure!(
                    !client.has_ended()?,
                    "{} has not outlived a death at {at}: {}",
                    plan.call,
                    client.rest()
                );
            }
        }
    }
    for (plan, client, seen) in &mut running {
        client.close_stdin();
        plan.check(client, COUNT, seen).context("after all deaths")?;
    }
    figure(format!("a daemon has died at {steps} steps of three streams"));
    Ok(())
}

/// The same from the open of a program to its end.
fn every_step_of_a_program() -> anyhow::Result<()> {
    if is_6_1() {
        return Ok(());
    }
    daemon::stop_shared();
    let devices = Devices::find()?;
    let _controls = devices.prepare()?;
    let camera = &devices.camera;
    let expect = Expect::Frames(native(camera)?);
    let call = "v4l2-ctl -d NODE --stream-user=3 --stream-count=COUNT --stream-to=FILE --verbose";
    let plan = plan(camera, Seat::plain(camera), call, expect);
    let kept = Kept::start_mortal(&[camera])?;
    let mut steps = 0;
    for (call, most) in [("pwrite", 16), ("reqbufs", 3), ("streamoff", 3)] {
        for number in 1..=most {
            let at = format!("{call} {number}");
            kept.arm(&at)?;
            kept.until_ready()?;
            let mut client = plan.start(3)?;
            plan.check(&mut client, 3, &mut Seen::default())
                .with_context(|| format!("a death at {at}"))?;
            if kept.deaths() == kept.kills.get() {
                // It has not come so far.
                break;
            }
            kept.kills.set(kept.kills.get() + 1);
            steps += 1;
            kept.until_ready()?;
        }
    }
    ensure!(steps >= 10, "{steps} steps");
    figure(format!("a daemon has died at {steps} steps of a program"));
    Ok(())
}
