//! The scene of 2020, "From a pointer to the dma-buf behind it", on framebuffers of our own: a camera is given the mapping
//! of /dev/fbN as a user pointer. What a person then sees is compared with the camera's own picture.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;

use crate::client::{AT_ONCE, Client, run, run_any};
use crate::daemon::Daemon;
use crate::picture::Control;
use crate::report::figure;
use crate::screens::{Picture, Screen};
use crate::setup::{Test, VMALLOC, is_6_1};
use crate::status::{self, How, Plane};
use crate::video;

pub const TESTS: &[(&str, Test)] = &[
    (
        "fb_scene::no_kernel_lets_a_camera_fill_a_real_screen",
        real_screens,
    ),
    (
        "fb_scene::a_camera_fills_memory_that_nobody_sees_without_a_copy",
        headless,
    ),
    ("fb_scene::a_camera_fills_virtio_gpu_without_a_copy", virtio),
    ("fb_scene::a_camera_fills_bochs_by_copies", bochs),
    (
        "fb_scene::a_camera_fills_a_shadow_that_is_shown_on_a_card",
        shadow,
    ),
];

const WIDTH: usize = 1280;
const HEIGHT: usize = 720;
/// More frames than are ever waited for.
const FOR_EVER: &str = "1000000";

/// The camera, with a picture of [`WIDTH`] x [`HEIGHT`] at rest, which is given its own format back afterwards.
struct Camera {
    picture: Picture,
}

impl Camera {
    fn new() -> anyhow::Result<Self> {
        let path = video::real(VMALLOC).to_string();
        let raw = "/tmp/scene.raw";
        let format = format!("width={WIDTH},height={HEIGHT},pixelformat=RGB3");
        run("v4l2-ctl", &["-d", &path, "-v", &format], AT_ONCE)?;
        let to = format!("--stream-to={raw}");
        let stream = ["-d", &path, "--stream-mmap", "--stream-count=2", &to];
        run("v4l2-ctl", &stream, 4 * AT_ONCE)?;
        let bytes = fs::read(raw)?;
        fs::remove_file(raw)?;
        let size = WIDTH * HEIGHT * 3;
        ensure!(bytes.len() == 2 * size, "{} bytes of two frames", bytes.len());
        let picture = Picture {
            width: WIDTH,
            height: HEIGHT,
            rgb: bytes[size..].to_vec(),
        };
        ensure!(picture.colors(8) == 8, "the camera shows no bars");
        Ok(Self { picture })
    }

    /// On a screen of `height` lines that was black before.
    fn on_screen(&self, height: usize) -> Picture {
        let mut screen = Picture::plain(WIDTH, height, [0; 3]);
        screen.put(&self.picture, 0, 0);
        screen
    }
}

impl Drop for Camera {
    fn drop(&mut self) {
        let path = video::real(VMALLOC).to_string();
        let format = "width=320,height=180,pixelformat=YUYV";
        if let Err(error) = run("v4l2-ctl", &["-d", &path, "-v", format, "-p", "120"], 4 * AT_ONCE) {
            eprintln!("the camera keeps the format of the scene: {error:#}");
        }
    }
}

/// A daemon for the camera and the framebuffer `fb`.
fn daemon_for(fb: &str) -> anyhow::Result<Daemon> {
    let camera = video::real(VMALLOC).to_string();
    Daemon::start(&["--device", &camera, "--fb", fb])
}

/// fb_capture, an ordinary program, on the nodes that `vidcompat run` puts in place; while it runs.
struct Capture(Client);

impl Capture {
    fn start(fb: &str, more: &[&str]) -> anyhow::Result<Self> {
        let camera = video::real(VMALLOC).to_string();
        let mut args = vec!["run", "fb_capture", "-d", &camera, "-b", fb, "-n", FOR_EVER];
        args.extend(more);
        Ok(Self(Client::start("vidcompat", &args)?))
    }

    /// How the camera has the screen, once it has filled it a few times.
    fn served(&mut self) -> anyhow::Result<Plane> {
        let end = Instant::now() + 4 * AT_ONCE;
        loop {
            let queue = status::queue(video::ours(VMALLOC), self.0.pid(), "video capture");
            let plane = queue.and_then(|queue| status::plane(&queue));
            match plane {
                Ok(plane) if plane.counter("frames") >= 5 => return Ok(plane),
                _ if self.0.has_ended()? => anyhow::bail!("fb_capture: {}", self.0.rest()),
                other => ensure!(Instant::now() < end, "no frames: {other:?}"),
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn end(mut self) -> anyhow::Result<()> {
        ensure!(!self.0.has_ended()?, "fb_capture has ended: {}", self.0.rest());
        self.0.signal(Signal::SIGKILL)?;
        self.0.end(AT_ONCE).map(drop)
    }
}

/// Has the camera fill the framebuffer `fb` until `look` has seen what it should; how that was served. The picture is
/// another one at first: a screen that shows the first frame only has the wrong one.
fn scene(
    fb: &str,
    more: &[&str],
    right: &Picture,
    look: impl Fn() -> anyhow::Result<Picture>,
) -> anyhow::Result<Plane> {
    let other = Control::set(VMALLOC, "test_pattern", 1, 0)?;
    let mut capture = Capture::start(fb, more)?;
    capture.served()?;
    thread::sleep(Duration::from_millis(300));
    let first = look()?;
    ensure!(first.must_be(right).is_err(), "the other picture is the same");
    drop(other);
    // A frame, and the time in which a screen follows, on a slow machine.
    thread::sleep(Duration::from_secs(1));
    look()?.must_be(right).context("the camera's picture")?;
    let served = capture.served()?;
    capture.end()?;
    Ok(served)
}

/// What the table in status says, as numbers.
fn must_be(served: &Plane, how: How, fb: &str) -> anyhow::Result<()> {
    let (imported, copied) = (served.counter("imported"), served.counter("copied"));
    figure(format!(
        "{fb}: {:?}, {imported} imported, {copied} copied",
        served.how
    ));
    ensure!(served.how == how, "{fb}: {served:?}");
    let none = match how {
        How::Copied => imported,
        How::Imported | How::Adopted => copied,
    };
    ensure!(none == 0, "{fb}: {imported} imported, {copied} copied");
    ensure!(served.told.contains("our own framebuffer"), "{served:?}");
    Ok(())
}

/// Without us, in the same run: EFAULT. (Linux 6.1 takes what has pages, and shows not all of it.)
fn real_screens() -> anyhow::Result<()> {
    if is_6_1() {
        return Ok(());
    }
    let camera = video::real(VMALLOC).to_string();
    let kept = Camera::new()?;
    for screen in [Screen::Virtio, Screen::Bochs] {
        let fb = screen.real()?.display().to_string();
        let args = ["-d", &camera, "-b", &fb, "-w", "1280", "-h", "720", "-n", "5"];
        let (status, said) = run_any("fb_capture", &args, 4 * AT_ONCE)?;
        ensure!(
            !status.success() && said.contains("QBUF of the screen: Bad address"),
            "{screen}: {status}: {said}"
        );
    }
    drop(kept);
    Ok(())
}

fn headless() -> anyhow::Result<()> {
    let camera = Camera::new()?;
    let mut daemon = daemon_for(&format!("memory:{WIDTH}x{HEIGHT}x32,as=9"))?;
    let shot = Path::new("/tmp/scene.png");
    let look = || {
        run(
            "vidcompat",
            &["screenshot", &shot.display().to_string()],
            4 * AT_ONCE,
        )?;
        of_png(shot)
    };
    let served = scene("/dev/fb9", &[], &camera.picture, look)?;
    // Without udmabuf there is no dma-buf of plain memory.
    let how = if is_6_1() { How::Copied } else { How::Imported };
    must_be(&served, how, "memory")?;
    daemon.end(Signal::SIGTERM, 2 * AT_ONCE)?;
    Ok(())
}

fn of_png(path: &Path) -> anyhow::Result<Picture> {
    let ppm = PathBuf::from("/tmp/scene.ppm");
    let command = format!("pngtopnm {} > {}", path.display(), ppm.display());
    run("sh", &["-c", &command], 2 * AT_ONCE)?;
    Picture::from_ppm(&fs::read(ppm)?)
}

fn virtio() -> anyhow::Result<()> {
    on_card(Screen::Virtio, "", How::Imported)
}

fn bochs() -> anyhow::Result<()> {
    on_card(Screen::Bochs, "", How::Copied)
}

/// Nobody draws into what is shown; the camera still has the memory.
fn shadow() -> anyhow::Result<()> {
    let how = if is_6_1() { How::Copied } else { How::Imported };
    on_card(Screen::Virtio, ",shadow", how)?;
    on_card(Screen::Bochs, ",shadow", how)
}

/// A framebuffer of ours on the card of `screen`, in the place of its real node; the part that the camera fills is
/// the whole width.
fn on_card(screen: Screen, options: &str, how: How) -> anyhow::Result<()> {
    let camera = Camera::new()?;
    let mut daemon = daemon_for(&format!("kms:{}{options}", screen.card()?.display()))?;
    let fb = screen.real()?.display().to_string();
    let name = format!(
        "scene-{}{}",
        screen.device().context("a card")?,
        options.replace(',', "-")
    );
    let look = || screen.picture(&name);
    let served = scene(&fb, &["-w", "1280", "-h", "720"], &camera.on_screen(800), look)?;
    must_be(&served, how, &format!("{screen}{options}"))?;
    daemon.end(Signal::SIGTERM, 2 * AT_ONCE)?;
    Ok(())
}
