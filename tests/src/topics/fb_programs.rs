//! Programs for framebuffers, unmodified, by the command lines that people use: on the real node, on ours in front of it,
//! and on ours made from a card. What a person sees must be the picture, and they must end alike.

pub mod place;
pub mod settings;

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;

use crate::client;
use crate::report::{equal, figure};
use crate::screens::{Picture, Screen};
use crate::setup::Test;
use crate::sys;

use place::{GREY, Place};

pub const TESTS: &[(&str, Test)] = &[
    ("fb_programs::qemu_sees_what_is_written", written),
    ("fb_programs::fbi", || everywhere(&FBI)),
    ("fb_programs::fim", || everywhere(&FIM)),
    ("fb_programs::ffmpeg_draws", || everywhere(&FFMPEG)),
    ("fb_programs::gstreamer", || everywhere(&GSTREAMER)),
    ("fb_programs::mplayer", || everywhere(&MPLAYER)),
    ("fb_programs::vlc_as_an_ordinary_user", || everywhere(&VLC)),
    ("fb_programs::links2", || everywhere(&LINKS)),
    ("fb_programs::directfb", || everywhere(&DIRECTFB)),
    ("fb_programs::sdl_1_2", || everywhere(&SDL)),
    ("fb_programs::qt_5", || everywhere(&QT)),
];

const PATIENCE: Duration = Duration::from_secs(40);

/// What is to be seen.
enum Seen {
    /// The whole of [`picture`], of which a color may be off by so much.
    Whole(u8),
    /// What the same program shows on the real node.
    AsReal(u8),
}

/// How a program ends.
enum End {
    /// By itself, and the picture stays.
    Itself,
    /// When its stdin ends.
    Input,
    /// By SIGTERM.
    Signal,
}

/// A program and how it is called: a line for bash, `NODE` being the node.
struct Program {
    name: &'static str,
    call: &'static str,
    seen: Seen,
    end: End,
    /// Lines that hold one of these words must be the same everywhere.
    says: &'static [&'static str],
}

const FBI: Program = Program {
    name: "fbi",
    call: "exec fbi -d NODE -T 1 -noverbose -a /tmp/fb.png </dev/tty1",
    seen: Seen::Whole(0),
    end: End::Signal,
    says: &["using"],
};
const FIM: Program = Program {
    name: "fim",
    // Its -d alone leaves it on /dev/fb0.
    call: "FRAMEBUFFER=NODE exec fim -q -o fb -d NODE /tmp/fb.png -c 'display;sleep 60;quit;'",
    seen: Seen::Whole(0),
    end: End::Signal,
    says: &["ioctl"],
};
const FFMPEG: Program = Program {
    name: "ffmpeg",
    call: "ffmpeg -v error -nostdin -i /tmp/fb.png -pix_fmt bgra -f fbdev NODE",
    seen: Seen::Whole(0),
    end: End::Itself,
    says: &[""],
};
const GSTREAMER: Program = Program {
    name: "gstreamer",
    call: "GST_PLUGIN_PATH=$PWD/target/clients/gstreamer gst-launch-1.0 filesrc location=/tmp/fb.png ! pngdec ! videoconvert ! \
           imagefreeze num-buffers=2 ! fbdevsink device=NODE",
    seen: Seen::Whole(0),
    end: End::Itself,
    says: &["Setting", "Got EOS", "ERROR"],
};
const MPLAYER: Program = Program {
    name: "mplayer",
    call: "exec mplayer -quiet -vo fbdev2:NODE -nosound -mf type=png:fps=1 -loop 60 mf:///tmp/fb.png",
    seen: Seen::Whole(0),
    end: End::Signal,
    says: &["VO:", "fbdev2", "Exiting"],
};
const VLC: Program = Program {
    name: "vlc",
    call: "HOME=/tmp exec setpriv --reuid nobody --regid nogroup --clear-groups vlc -I dummy --no-audio --no-dbus --vout fb \
           --fbdev=NODE --no-fb-tty --image-duration=60 /tmp/fb.png",
    // It turns RGB into YUV and back.
    seen: Seen::Whole(12),
    end: End::Signal,
    says: &["fb_"],
};
const LINKS: Program = Program {
    name: "links2",
    // It greets who has no home yet. The node cannot be named: it opens /dev/fb0.
    call: "HOME=$(mktemp -d) exec links2 -g -driver fb /tmp/fb.png </dev/tty1",
    seen: Seen::AsReal(0),
    end: End::Signal,
    says: &[],
};
const DIRECTFB: Program = Program {
    name: "directfb",
    call: "DFBARGS=system=fbdev,fbdev=NODE,no-vt,no-cursor exec dfbshow /tmp/fb.dfiff",
    seen: Seen::Whole(0),
    end: End::Signal,
    says: &["FBDev/Mode", "gamma"],
};
const SDL: Program = Program {
    name: "sdl",
    call: "SDL_VIDEODRIVER=fbcon SDL_FBDEV=NODE SDL_NOMOUSE=1 sdl_picture /tmp/fb.bmp 32",
    seen: Seen::Whole(0),
    end: End::Input,
    says: &["bits", "sdl_picture"],
};
const QT: Program = Program {
    name: "qt",
    call: "QT_QPA_FB_DISABLE_INPUT=1 python3 tests/clients/toolkits/qt_picture.py /tmp/fb.png -platform linuxfb:fb=NODE",
    seen: Seen::Whole(0),
    end: End::Input,
    says: &["linuxfb", "Error"],
};

/// The picture that all programs show, as they read it: `/tmp/fb.png` and so on. As large as the screens.
pub fn picture() -> anyhow::Result<Picture> {
    const PPM: &str = "/tmp/fb.ppm";
    if !fs::exists(PPM)? {
        let script = "cd /tmp && ffmpeg -v error -nostdin -f lavfi -i testsrc2=s=1280x800:r=1 -frames:v 1 -pix_fmt rgb24 fb.png \
             && ffmpeg -v error -nostdin -i fb.png -pix_fmt bgr24 fb.bmp && mkdfiff fb.png >fb.dfiff \
             && ffmpeg -v error -nostdin -i fb.png fb.new.ppm && mv fb.new.ppm fb.ppm";
        client::run("bash", &["-c", script], PATIENCE)?;
    }
    Picture::from_ppm(&fs::read(PPM)?)
}

/// Gives the console its text back, as fbi does not when it is killed: the tests of the console need it.
fn text_console() -> anyhow::Result<()> {
    // With KD_TEXT, which is 0, and with zeroes, which is VT_AUTO.
    const KDSETMODE: u64 = 0x4b3a;
    const VT_SETMODE: u64 = 0x5602;
    let tty = fs::File::options().read(true).write(true).open("/dev/tty1")?;
    sys::ioctl(&tty, VT_SETMODE, &mut [0_u8; 8]).context("VT_SETMODE")?;
    sys::ioctl_null(&tty, KDSETMODE).context("KDSETMODE")?;
    Ok(())
}

/// Switches off the console's cursor, which some programs leave switched on.
fn hide_cursor() -> anyhow::Result<()> {
    fs::write("/dev/tty0", "\x1b[?25l").context("the console")
}

/// That the pictures below are of the screens that they are thought to be of, and what is written is seen at all.
fn written() -> anyhow::Result<()> {
    for screen in [Screen::Virtio, Screen::Bochs] {
        for place in [Place::real, Place::ours, Place::kms] {
            let place = place(screen)?;
            place.wipe()?;
            let grey = Picture::plain(1280, 800, [GREY; 3]);
            place
                .until("written", &grey, 0, Duration::from_secs(5))
                .with_context(|| place.log())?;
        }
    }
    Ok(())
}

/// What a program said and how it ended.
struct Outcome {
    status: String,
    said: String,
    seen: Picture,
}

fn play(program: &Program, place: &Place, right: Option<&Picture>) -> anyhow::Result<Outcome> {
    let name = program.name;
    text_console()?;
    hide_cursor()?;
    place.wipe()?;
    // What the place before has left is the very picture that is waited for.
    place.until(name, &Picture::plain(1280, 800, [GREY; 3]), 0, PATIENCE / 4)?;
    let by = match program.seen {
        Seen::Whole(by) | Seen::AsReal(by) => by,
    };
    let look = || match right {
        Some(right) => {
            place.until(name, right, by, PATIENCE / 2)?;
            Ok(right.clone())
        }
        None => place.settled(name, PATIENCE / 2),
    };
    let call = program
        .call
        .replace("NODE", place.seat.path.to_str().context("no text")?);
    let mut client = place.seat.start(&["bash", "-c", &call])?;
    let seen = match program.end {
        End::Itself => None,
        End::Input | End::Signal => Some(look()),
    };
    match program.end {
        End::Itself => {}
        End::Input => client.close_stdin(),
        End::Signal => client.signal(Signal::SIGTERM)?,
    }
    let status = client.end(PATIENCE)?;
    let said = client.rest();
    let seen = seen.unwrap_or_else(look);
    text_console()?;
    Ok(Outcome {
        seen: seen.with_context(|| format!("{call}: {status}: {said}"))?,
        status: status.to_string(),
        said,
    })
}

/// The lines of what a program said that must be the same.
fn lines(program: &Program, said: &str) -> Vec<String> {
    let is_one = |line: &&str| program.says.iter().any(|word| line.contains(word));
    let said = said.lines().filter(is_one);
    let mut lines: Vec<String> = said
        .map(|line| {
            // DirectFB tells `(virtual 1280x800)`. Ours has room for another picture below the one that is shown, where the
            // card's own node has none, so that programs can flip.
            match line
                .split_once("(virtual ")
                .and_then(|(before, rest)| Some((before, rest.split_once(") ")?.1)))
            {
                Some((before, after)) => format!("{before}{after}"),
                None => line.to_owned(),
            }
        })
        .collect();
    // MPlayer repeats some as long as it runs.
    lines.dedup();
    lines
}

/// Runs a program at each place.
fn everywhere(program: &Program) -> anyhow::Result<()> {
    let whole = picture()?;
    let whole = match program.seen {
        Seen::Whole(_) => Some(&whole),
        Seen::AsReal(_) => None,
    };
    let native = play(program, &Place::real(Screen::Virtio)?, whole)?;
    for (place, screen) in [
        (Place::ours as fn(Screen) -> anyhow::Result<Place>, Screen::Virtio),
        (Place::kms, Screen::Virtio),
        (Place::kms, Screen::Bochs),
    ] {
        // Who cannot be told which node draws on /dev/fb0, which is not this one.
        if screen == Screen::Bochs && !program.call.contains("NODE") {
            continue;
        }
        let place = place(screen)?;
        let served = play(program, &place, Some(&native.seen)).with_context(|| place.log())?;
        let wrong = |what: &str| format!("{}, {screen}: {what}", place.seat.name);
        ensure!(
            served.status == native.status,
            "{}\n{}\ninstead of\n{}",
            wrong(&format!("{} instead of {}", served.status, native.status)),
            served.said,
            native.said
        );
        equal(&lines(program, &native.said), &lines(program, &served.said))
            .with_context(|| wrong("it says"))?;
    }
    figure(format!("{}: {}", program.name, native.status));
    Ok(())
}
