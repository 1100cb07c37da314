//! Programs that ask, set and read: fbset, fbcat, ffmpeg's grabbing, DirectFB's list, and stress-ng, which only has to be
//! outlived. 32-bit ones among them.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::errno::Errno;

use super::place::Place;
use super::{PATIENCE, hide_cursor, picture};
use crate::client::run;
use crate::report::{equal, figure};
use crate::screens::{Picture, Screen};
use crate::setup::Test;
use crate::sys;

pub const TESTS: &[(&str, Test)] = &[
    ("fb_programs::fbset_asks", fbset_asks),
    ("fb_programs::fbset_sets_on_vfb", fbset_sets),
    ("fb_programs::fbset_sets_on_a_card", fbset_sets_on_a_card),
    ("fb_programs::fbcat_and_ffmpeg_grab", grab),
    ("fb_programs::directfb_lists", dfbinfo),
    ("fb_programs::stress_ng", stress),
    ("fb_programs::nobody_takes_us_for_an_omap", omap),
];

/// Until what was drawn is seen.
const LIMIT: Duration = Duration::from_secs(10);

const PLACES: [fn(Screen) -> anyhow::Result<Place>; 2] = [Place::real, Place::ours];

/// What a line for bash says at a place, its exit status included.
fn say(place: &Place, call: &str) -> anyhow::Result<Vec<String>> {
    let call = call.replace("NODE", place.seat.path.to_str().context("no text")?);
    let (status, said) = place.seat.play(&["bash", "-c", &call], PATIENCE)?;
    let lines = said.lines().map(str::to_owned);
    Ok(lines.chain([status.to_string()]).collect())
}

fn fbset_asks() -> anyhow::Result<()> {
    for screen in Screen::ALL {
        let [native, served] = PLACES.map(|place| {
            let place = place(screen)?;
            let programs = ["fbset", "fbset-i386"];
            let [wide, narrow] = programs.map(|program| say(&place, &format!("{program} -i -fb NODE")));
            let (wide, narrow) = (wide?, narrow?);
            // Of an address 32 bits are left.
            let same = |lines: &[String]| -> Vec<String> {
                let lines = lines.iter().filter(|line| !line.contains("Address"));
                lines.cloned().collect()
            };
            equal(&same(&wide), &same(&narrow))
                .with_context(|| format!("32 bits {}, {screen}", place.seat.name))?;
            let wide = [wide, narrow].concat();
            Ok::<_, anyhow::Error>(wide)
        });
        let native = native?;
        ensure!(native.len() > 10, "{native:?}");
        equal(&native, &served?).with_context(|| format!("{screen}"))?;
    }
    // A card of the same picture: only who it is, how much memory there is and the timings, which the real one does not
    // know, are other ones.
    for screen in [Screen::Virtio, Screen::Bochs] {
        let its_own = [
            "Name ", "Size ", "timings", "mode ", "# D:", "PanStep", "WrapStep",
            // Drivers of 6.1 say that they speed up the console's text, which nobody draws on ours.
            "accel ",
        ];
        let common = |lines: Vec<String>| -> Vec<String> {
            let is_common = |line: &String| !its_own.iter().any(|word| line.contains(word));
            lines.into_iter().filter(is_common).collect()
        };
        let native = say(&Place::real(screen)?, "fbset -i -fb NODE")?;
        let served = say(&Place::kms(screen)?, "fbset -i -fb NODE")?;
        figure(format!(
            "fbset on a framebuffer made from {screen}: {}",
            served.join(" / ")
        ));
        equal(&common(native), &common(served)).with_context(|| format!("made from {screen}"))?;
    }
    Ok(())
}

/// vfb takes every mode.
fn fbset_sets() -> anyhow::Result<()> {
    let modes = [
        "640 480 640 480 16",
        "800 600 800 1200 32",
        "320 240 320 240 8",
        "640 480 640 480 7",
        "9999 9999 9999 9999 32",
    ];
    let mut said = Vec::new();
    for place in PLACES {
        let place = place(Screen::Vfb)?;
        let mut lines = Vec::new();
        for mode in modes {
            lines.extend(say(&place, &format!("fbset -fb NODE -g {mode}"))?);
            lines.extend(say(&place, "fbset -i -fb NODE")?);
        }
        // As it was.
        lines.extend(say(
            &place,
            "fbset -fb NODE -g 640 480 640 480 8 -t 20000 64 64 32 32 64 2",
        )?);
        said.push(lines);
    }
    equal(&said[0], &said[1])
}

/// Modes and depths that the hardware lacks: by conversion.
fn fbset_sets_on_a_card() -> anyhow::Result<()> {
    picture()?;
    for screen in [Screen::Virtio, Screen::Bochs] {
        let place = Place::kms(screen)?;
        // And ffmpeg's name for the format.
        for (depth, format) in [(16, "rgb565le"), (24, "bgr24"), (32, "bgra")] {
            set(&place, 1280, 800, depth)?;
            place.wipe()?;
            let right = draw(&place, 1280, 800, format)?;
            place
                .until(&format!("depth-{depth}"), &right, 0, LIMIT)
                .with_context(|| place.log())?;
        }
        set(&place, 640, 480, 32)?;
        place.wipe()?;
        let part = draw(&place, 640, 480, "bgra")?;
        // A mode of the card's own, or in the middle of a larger one with black around it.
        let mut in_the_middle = Picture::plain(1280, 800, [0; 3]);
        in_the_middle.put(&part, (1280 - 640) / 2, (800 - 480) / 2);
        let end = Instant::now() + LIMIT;
        let seen = loop {
            let seen = place.picture("640x480")?;
            if seen == part || seen == in_the_middle || Instant::now() > end {
                break seen;
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        figure(format!("640x480 on {screen}: QEMU shows {seen:?}"));
        let right = if seen.width == 640 { part } else { in_the_middle };
        seen.must_be(&right)
            .with_context(|| format!("640x480 on {screen}"))
            .with_context(|| place.log())?;
    }
    Ok(())
}

fn set(place: &Place, width: usize, height: usize, depth: u32) -> anyhow::Result<()> {
    let call = format!("fbset -fb NODE -g {width} {height} {width} {height} {depth}");
    let said = say(place, &call)?;
    ensure!(said == ["exit status: 0"], "{call}: {said:?}");
    Ok(())
}

/// Has ffmpeg draw the upper left corner of the picture: what a person must see of it. That is of the bytes that ffmpeg has
/// made, as it rounds and dithers as it likes where there are fewer bits.
fn draw(place: &Place, width: usize, height: usize, format: &str) -> anyhow::Result<Picture> {
    const BYTES: &str = "/tmp/drawn.raw";
    let made = format!("-sws_dither none -vf crop={width}:{height}:0:0 -pix_fmt {format}");
    let call =
        format!("ffmpeg -v error -nostdin -i /tmp/fb.png {made} -f rawvideo -y {BYTES} {made} -f fbdev NODE");
    let said = say(place, &call)?;
    ensure!(said == ["exit status: 0"], "{call}: {said:?}");
    let bytes = fs::read(BYTES)?;
    let bytes_of_pixel = bytes.len() / (width * height);
    let pixels = bytes.chunks_exact(bytes_of_pixel);
    let rgb: Vec<u8> = pixels.flat_map(shown).collect();
    ensure!(
        rgb.len() == width * height * 3,
        "{} bytes of {format}",
        bytes.len()
    );
    Ok(Picture { width, height, rgb })
}

/// The color of a pixel of 2 (rgb565), 3 or 4 bytes. Of fewer bits the first are repeated, so that the most is white.
fn shown(pixel: &[u8]) -> [u8; 3] {
    match *pixel {
        [low, high] => {
            let (red, green, blue) = (high >> 3, (high & 7) << 3 | low >> 5, low & 31);
            [
                red << 3 | red >> 2,
                green << 2 | green >> 4,
                blue << 3 | blue >> 2,
            ]
        }
        [blue, green, red, ..] => [red, green, blue],
        _ => [0; 3],
    }
}

/// What is on the screen, by three programs and one of 32 bits, each against the bytes that were drawn.
fn grab() -> anyhow::Result<()> {
    let whole = picture()?;
    grab_at(&Place::real(Screen::Virtio)?, &whole)?;
    for place in [Place::ours as fn(Screen) -> anyhow::Result<Place>, Place::kms] {
        grab_at(&place(Screen::Virtio)?, &whole)?;
    }
    grab_at(&Place::kms(Screen::Bochs)?, &whole)
}

fn grab_at(place: &Place, whole: &Picture) -> anyhow::Result<()> {
    let pixels: Vec<u8> = whole
        .rgb
        .chunks_exact(3)
        .flat_map(|rgb| [rgb[2], rgb[1], rgb[0], 0])
        .collect();
    // On the real node the console's cursor is among the pixels that programs read, and some programs leave it switched on.
    hide_cursor()?;
    place.open()?.write_all_at(&pixels, 0)?;
    for (program, call) in [
        ("fbcat", "fbcat NODE >/tmp/grabbed.ppm"),
        ("fbcat-i386", "fbcat-i386 NODE >/tmp/grabbed.ppm"),
        (
            "ffmpeg",
            "ffmpeg -v error -nostdin -f fbdev -framerate 10 -i NODE -frames:v 1 -pix_fmt rgb24 -y /tmp/grabbed.ppm",
        ),
    ] {
        drop(fs::remove_file("/tmp/grabbed.ppm"));
        let said = say(place, call)?;
        ensure!(
            said == ["exit status: 0"],
            "{program} {}: {said:?}",
            place.seat.name
        );
        Picture::from_ppm(&fs::read("/tmp/grabbed.ppm")?)?
            .must_be(whole)
            .with_context(|| format!("{program} {}, {}", place.seat.name, place.screen))?;
    }
    Ok(())
}

/// All that DirectFB finds: it tries a long list of modes.
fn dfbinfo() -> anyhow::Result<()> {
    let call = "DFBARGS=system=fbdev,fbdev=NODE,no-vt,quiet dfbinfo";
    let list = |place: &Place| -> anyhow::Result<Vec<String>> {
        let mut lines = say(place, call)?;
        // With times and addresses.
        lines.retain(|line| !line.contains("[") && !line.contains("UNIMPLEMENTED"));
        Ok(lines)
    };
    let [native, served] = PLACES.map(|place| list(&place(Screen::Virtio)?));
    let native = native?;
    ensure!(native.len() > 20, "{native:?}");
    equal(&native, &served?)?;
    let served = list(&Place::kms(Screen::Virtio)?)?;
    ensure!(
        served.last() == native.last(),
        "made from a card: {served:?} instead of {native:?}"
    );
    Ok(())
}

fn stress() -> anyhow::Result<()> {
    let call = "cd /tmp && stress-ng --dev 1 --dev-file NODE --timeout 2";
    let native = say(&Place::real(Screen::Bochs)?, call)?;
    for place in [Place::ours(Screen::Bochs)?, Place::kms(Screen::Bochs)?] {
        let served = say(&place, call)?;
        ensure!(
            served.last() == native.last(),
            "{}: {served:?} instead of {native:?}",
            place.seat.name
        );
        // It still serves.
        let asked = run(
            "fbset",
            &["-fb", place.node.to_str().context("no text")?],
            PATIENCE,
        )?;
        ensure!(asked.contains("geometry 1280 800"), "{asked}");
    }
    Ok(())
}

/// MPlayer tries OMAPFB_SYNC_GFX, and any answer but an error makes it believe.
fn omap() -> anyhow::Result<()> {
    const OMAPFB_SYNC_GFX: u64 = 0x4f25;
    for place in [
        Place::real as fn(Screen) -> anyhow::Result<Place>,
        Place::ours,
        Place::kms,
    ] {
        let place = place(Screen::Virtio)?;
        let answer = sys::ioctl_null(place.open()?, OMAPFB_SYNC_GFX);
        ensure!(answer == Err(Errno::ENOTTY), "{}: {answer:?}", place.seat.name);
    }
    Ok(())
}
