use proptest::prelude::*;

use super::{Hardware, ModeTiming, Put, Rules, ScreenMode};
use crate::Errno;
use crate::abi::fb::{Bitfield, ColorMap, VarScreenInfo};
use crate::fourcc::PixelFormat;

fn mode(width: u32, height: u32) -> ScreenMode {
    ScreenMode {
        width,
        height,
        refresh_mhz: 60_000,
        timing: ModeTiming {
            pixclock: 12_000,
            left_margin: 64,
            right_margin: 32,
            upper_margin: 20,
            lower_margin: 3,
            hsync_len: 100,
            vsync_len: 5,
            ..ModeTiming::default()
        },
    }
}

fn hardware() -> Hardware {
    Hardware {
        id: "virtio_gpudrmfb and more".to_owned(),
        modes: vec![mode(1280, 800), mode(1920, 1080), mode(800, 600)],
        memory: 2 * 1920 * 1080 * 4,
        direct_pitch: None,
        size_mm: Some((310, 200)),
    }
}

fn rules() -> Rules {
    Rules::new(hardware(), None, 32).expect("the best mode")
}

/// What a program does: it takes what there is, and changes what it wants.
fn put(rules: &mut Rules, change: impl FnOnce(&mut VarScreenInfo)) -> Result<VarScreenInfo, Errno> {
    let mut var = rules.fbioget_vscreeninfo();
    change(&mut var);
    rules.fbioput_vscreeninfo(&mut var).map(|_| var)
}

#[test]
fn it_begins_with_the_best_mode_in_the_depth_asked_for() {
    let rules = rules();
    let var = rules.fbioget_vscreeninfo();
    assert_eq!(
        (var.xres, var.yres, var.xres_virtual, var.yres_virtual),
        (1280, 800, 1280, 800)
    );
    assert_eq!(PixelFormat::of_var(&var), Some(PixelFormat::Xrgb8888));
    assert_eq!((var.width, var.height, var.pixclock), (310, 200, 12_000));
    let fix = rules.fbioget_fscreeninfo();
    assert_eq!(&fix.id, b"virtio_gpudrmfb\0");
    assert_eq!(
        (fix.smem_start, fix.smem_len, fix.line_length),
        (0, 2 * 1920 * 1080 * 4, 5120)
    );
    assert_eq!((fix.kind, fix.visual, fix.accel), (0, 2, 0));
    assert_eq!((fix.xpanstep, fix.ypanstep, fix.ywrapstep), (1, 1, 0));
}

#[test]
fn each_depth_has_its_line_length_and_visual() {
    let mut rules = rules();
    for (bits, line_length, visual) in [
        (8, 804, 3),
        (16, 1604, 2),
        (24, 2404, 2),
        (32, 3204, 2),
        (15, 1604, 2),
    ] {
        put(&mut rules, |var| {
            (var.xres, var.yres, var.xres_virtual, var.bits_per_pixel) = (800, 600, 801, bits);
        })
        .expect("a mode");
        let fix = rules.fbioget_fscreeninfo();
        assert_eq!((fix.line_length, fix.visual), (line_length, visual), "{bits}");
    }
}

#[test]
fn a_mode_of_its_own_size_is_set_and_others_are_doubled_in_the_middle_of_the_best() {
    let mut rules = rules();
    for (width, height, mode, scale, left, top) in [
        (800, 600, 2, 1, 0, 0),
        (1920, 1080, 1, 1, 0, 0),
        (640, 480, 0, 1, 320, 160),
        (640, 400, 0, 2, 0, 0),
        (320, 200, 0, 4, 0, 0),
        (320, 240, 0, 3, 160, 40),
        // Too wide for the best.
        (1281, 700, 1, 1, 319, 190),
    ] {
        put(&mut rules, |var| {
            (var.xres, var.yres, var.xres_virtual, var.yres_virtual) = (width, height, width, height);
        })
        .expect("it fits");
        let view = rules.view();
        assert_eq!((view.width, view.height), (width, height));
        assert_eq!(
            (view.fit.mode, view.fit.scale, view.fit.left, view.fit.top),
            (mode, scale, left, top)
        );
    }
    for (width, height) in [
        (1921, 1080),
        (1920, 1081),
        (7, 600),
        (800, 7),
        (u32::MAX, u32::MAX),
    ] {
        let before = rules.fbioget_vscreeninfo();
        assert_eq!(
            put(&mut rules, |var| (var.xres, var.yres) = (width, height)),
            Err(Errno::EINVAL)
        );
        assert_eq!(rules.fbioget_vscreeninfo(), before);
    }
}

#[test]
fn the_pixel_clock_of_a_doubled_picture_gives_the_modes_refresh() {
    let mut rules = rules();
    let var = put(&mut rules, |var| (var.xres, var.yres) = (320, 200)).expect("it fits");
    let total = f64::from(320 + 64 + 32 + 100) * f64::from(200 + 20 + 3 + 5);
    let refresh = 1e12 / (total * f64::from(var.pixclock));
    assert!((refresh - 60.0).abs() < 0.01, "{refresh}");
}

#[test]
fn of_modes_of_one_size_the_refresh_that_is_asked_for_is_taken() {
    let mut hardware = hardware();
    hardware.modes.push(ScreenMode {
        refresh_mhz: 75_000,
        ..mode(800, 600)
    });
    let mut rules = Rules::new(hardware, Some((800, 600)), 16).expect("a mode");
    assert_eq!(rules.view().fit.mode, 2);
    put(&mut rules, |var| {
        let total = u64::from(800u32 + 64 + 32 + 100) * u64::from(600u32 + 20 + 3 + 5);
        var.pixclock = u32::try_from(1_000_000_000_000 / 75 / total).expect("small");
    })
    .expect("a mode");
    assert_eq!(rules.view().fit.mode, 3);
}

#[test]
fn a_test_changes_nothing_and_says_what_would_be() {
    let mut rules = rules();
    let before = rules.fbioget_vscreeninfo();
    for activate in [2, 1, 2 | 16 | 64 | 128] {
        let mut var = VarScreenInfo {
            xres: 640,
            yres: 480,
            bits_per_pixel: 16,
            activate,
            ..VarScreenInfo::default()
        };
        assert_eq!(rules.fbioput_vscreeninfo(&mut var), Ok(Put::Nothing));
        assert_eq!(
            (var.xres_virtual, var.yres_virtual, var.green.length),
            (640, 480, 6)
        );
        assert_eq!(rules.fbioget_vscreeninfo(), before);
    }
    // FB_ACTIVATE_VBL and ALL: now; KD_TEXT is the kernel's own.
    let var = put(&mut rules, |var| {
        (var.yres_virtual, var.activate) = (1600, 16 | 64 | 512)
    })
    .expect("room");
    assert_eq!((var.activate, rules.fbioget_vscreeninfo()), (16 | 64, var));
}

#[test]
fn what_is_as_before_is_set_again_only_by_force() {
    let mut rules = rules();
    let mut var = rules.fbioget_vscreeninfo();
    assert_eq!(rules.fbioput_vscreeninfo(&mut var), Ok(Put::Nothing));
    var.activate = 128;
    assert_eq!(rules.fbioput_vscreeninfo(&mut var), Ok(Put::Set));
}

#[test]
fn the_current_mode_cannot_be_made_invalid() {
    let mut rules = rules();
    assert_eq!(put(&mut rules, |var| var.activate = 256), Err(Errno::EINVAL));
    assert!(put(&mut rules, |var| (var.activate, var.xres) = (256, 640)).is_ok());
    assert_eq!(rules.fbioget_vscreeninfo().xres, 1280);
}

#[test]
fn the_virtual_screen_is_as_large_as_asked_for_up_to_the_memory() {
    let mut rules = rules();
    let var = put(&mut rules, |var| (var.yres_virtual, var.yoffset) = (100, 800)).expect("room");
    assert_eq!((var.yres_virtual, var.yoffset), (1600, 800));
    let most = 2 * 1920 * 1080 * 4 / (1280 * 4);
    assert_eq!(
        put(&mut rules, |var| var.yres_virtual = most)
            .expect("room")
            .yres_virtual,
        most
    );
    assert_eq!(
        put(&mut rules, |var| var.yres_virtual = most + 1),
        Err(Errno::EINVAL)
    );
    let more = |var: &mut VarScreenInfo| (var.yres_virtual, var.bits_per_pixel) = (most + 1, 16);
    assert_eq!(put(&mut rules, more).expect("room").yres_virtual, most + 1);
}

#[test]
fn grey_fourcc_and_non_standard_formats_are_refused() {
    let mut rules = rules();
    let rgb565 = u32::from_le_bytes(*b"RGBP");
    for change in [(1, 0), (rgb565, 0), (0, 1)] {
        assert_eq!(
            put(&mut rules, |var| (var.grayscale, var.nonstd) = change),
            Err(Errno::EINVAL)
        );
    }
    assert_eq!(put(&mut rules, |var| var.bits_per_pixel = 33), Err(Errno::EINVAL));
}

#[test]
fn panning_stays_within_the_virtual_screen_and_does_not_wrap() {
    let mut rules = rules();
    put(&mut rules, |var| {
        (var.xres_virtual, var.yres_virtual) = (1300, 1600)
    })
    .expect("room");
    for (x, y, vmode, answer) in [
        (0, 800, 0, Ok(())),
        (20, 0, 0, Ok(())),
        (21, 0, 0, Err(Errno::EINVAL)),
        (0, 801, 0, Err(Errno::EINVAL)),
        (u32::MAX, 0, 0, Err(Errno::EINVAL)),
        (0, 1, 256, Err(Errno::EINVAL)),
        (0, 0, 256, Ok(())),
        (3, 4, 0, Ok(())),
    ] {
        let var = VarScreenInfo {
            xoffset: x,
            yoffset: y,
            vmode,
            ..VarScreenInfo::default()
        };
        assert_eq!(rules.fbiopan_display(&var), answer, "{x} {y} {vmode}");
        if answer.is_ok() {
            let now = rules.fbioget_vscreeninfo();
            assert_eq!((now.xoffset, now.yoffset, now.vmode & 256), (x, y, vmode));
        }
    }
    assert_eq!(rules.view().line_start(1), 5 * 5200 + 3 * 4);
}

#[test]
fn direct_memory_is_shown_as_it_is_only_where_all_of_it_is_the_hardwares() {
    let hardware = Hardware {
        direct_pitch: Some(5376),
        ..hardware()
    };
    let mut rules = Rules::new(hardware, None, 32).expect("a mode");
    assert!(rules.view().direct);
    assert_eq!(rules.fbioget_fscreeninfo().line_length, 5376);
    // Alpha is not shown.
    put(&mut rules, |var| {
        var.transp = Bitfield {
            offset: 24,
            length: 8,
            msb_right: 0,
        }
    })
    .expect("a format");
    assert!(rules.view().direct);
    for change in [
        (|var: &mut VarScreenInfo| var.bits_per_pixel = 16) as fn(&mut VarScreenInfo),
        |var| var.xres_virtual = 1281,
        |var| (var.red.offset, var.blue.offset) = (0, 16),
        |var| (var.xres, var.xres_virtual) = (640, 640),
    ] {
        let mut rules = rules.clone();
        let before = rules.view().direct;
        let var = put(&mut rules, change).expect("by conversion");
        let as_it_is = PixelFormat::of_var(&var) == Some(PixelFormat::Argb8888) && var.xres_virtual == 1280;
        assert_eq!((before, rules.view().direct), (true, as_it_is));
    }
    // A narrower picture in lines of the hardware's is still converted, in the hardware's own layout.
    put(&mut rules, |var| var.yres = 400).expect("by conversion");
    assert!(!rules.view().direct);
    assert_eq!(rules.fbioget_fscreeninfo().line_length, 5376);
}

fn map(start: u32, len: usize) -> ColorMap {
    ColorMap {
        start,
        red: vec![0x1234; len],
        green: vec![0x5678; len],
        blue: vec![0x9abc; len],
        transp: Some(vec![7; len]),
    }
}

#[test]
fn the_map_has_a_consoles_colours_first_and_256_entries() {
    let rules = rules();
    let mut all = map(0, 300);
    rules.fbiogetcmap(&mut all).expect("all of it");
    assert_eq!(
        (all.red.len(), all.green.len(), all.blue.len(), all.transp),
        (256, 256, 256, None)
    );
    assert_eq!((all.red[6], all.green[6], all.blue[6]), (0xaaaa, 0x5555, 0));
    assert_eq!((all.red[16], all.red[15]), (0, 0xffff));
    let mut last = map(250, 10);
    rules.fbiogetcmap(&mut last).expect("six");
    assert_eq!(last.red.len(), 6);
    for (start, len) in [(256, 1), (u32::MAX, 1), (0, 0)] {
        assert_eq!(rules.fbiogetcmap(&mut map(start, len)), Err(Errno::EINVAL));
    }
}

#[test]
fn sixteen_entries_can_be_set_where_pixels_have_colours_and_all_where_they_are_indexes() {
    let mut rules = rules();
    assert_eq!(rules.fbioputcmap(&map(0, 17)), Err(Errno::EINVAL));
    assert_eq!(rules.fbioputcmap(&map(1, 16)), Err(Errno::EINVAL));
    assert_eq!(rules.fbioputcmap(&map(0, 0)), Err(Errno::EINVAL));
    assert_eq!(rules.fbioputcmap(&map(u32::MAX, 2)), Err(Errno::EINVAL));
    assert_eq!(rules.fbioputcmap(&map(15, 1)), Ok(()));
    put(&mut rules, |var| var.bits_per_pixel = 8).expect("a mode");
    assert_eq!(rules.palette()[15], 0x0012_569a);
    assert_eq!(rules.palette()[14], 0x00ff_ff55);
    assert_eq!(rules.fbioputcmap(&map(1, 255)), Ok(()));
    assert_eq!(rules.fbioputcmap(&map(1, 256)), Err(Errno::EINVAL));
    assert_eq!((rules.palette()[255], rules.palette()[0]), (0x0012_569a, 0));
}

#[test]
fn five_levels_of_blanking_are_known() {
    let mut rules = rules();
    for level in 0..5 {
        assert_eq!((rules.fbioblank(level), rules.blank()), (Ok(()), level));
    }
    assert_eq!(
        (rules.fbioblank(5), rules.fbioblank(u32::MAX)),
        (Err(Errno::EINVAL), Err(Errno::EINVAL))
    );
    assert_eq!(rules.blank(), 4);
}

fn any_u32() -> impl Strategy<Value = u32> {
    prop_oneof![0u32..8, 8u32..2100, Just(u32::MAX), any::<u32>()]
}

proptest! {
    /// Whatever a program asks for: what is shown lies in the memory and on the hardware, and asking for the answer again
    /// gives the same.
    #[test]
    fn what_is_shown_lies_in_the_memory_and_on_the_hardware(
        sizes in prop::array::uniform6(any_u32()),
        bits in 0u32..34,
        offset in 0u32..40,
        activate in prop_oneof![Just(0u32), Just(128), Just(2), any::<u32>()],
        pan in prop::array::uniform2(any_u32()),
        direct in any::<bool>(),
    ) {
        let hardware = Hardware { direct_pitch: direct.then_some(5376), ..hardware() };
        let mut rules = Rules::new(hardware.clone(), None, 32).expect("a mode");
        let [xres, yres, xres_virtual, yres_virtual, xoffset, yoffset] = sizes;
        let mut var = VarScreenInfo {
            xres, yres, xres_virtual, yres_virtual, xoffset, yoffset, bits_per_pixel: bits, activate,
            ..VarScreenInfo::default()
        };
        var.red.offset = offset;
        let before = rules.fbioget_vscreeninfo();
        let mut asked = var;
        asked.activate &= !512;
        match rules.fbioput_vscreeninfo(&mut var) {
            Ok(Put::Set) => {
                prop_assert_eq!(rules.fbioget_vscreeninfo(), var);
                prop_assert_eq!((var.xres, var.yres), (xres, yres));
                prop_assert!(var.xres_virtual >= xres_virtual && var.yres_virtual >= yres_virtual);
                let mut again = var;
                again.activate |= 128;
                prop_assert_eq!(rules.fbioput_vscreeninfo(&mut again), Ok(Put::Set));
                again.activate = var.activate;
                prop_assert_eq!(again, var);
            }
            Ok(Put::Nothing) => prop_assert_eq!(rules.fbioget_vscreeninfo(), before),
            Err(error) => {
                prop_assert_eq!(error, Errno::EINVAL);
                prop_assert_eq!((asked, rules.fbioget_vscreeninfo()), (var, before));
            }
        }
        let _ = rules.fbiopan_display(&VarScreenInfo { xoffset: pan[0], yoffset: pan[1], ..VarScreenInfo::default() });
        let view = rules.view();
        let end = view.line_start(view.height - 1) + u64::from(view.line_bytes());
        prop_assert!(end <= u64::from(hardware.memory));
        prop_assert!(view.x * view.format.bytes_per_pixel() + view.line_bytes() <= view.line_length);
        let mode = hardware.modes[view.fit.mode];
        prop_assert!(view.fit.scale >= 1);
        prop_assert!(view.fit.left + view.width * view.fit.scale <= mode.width);
        prop_assert!(view.fit.top + view.height * view.fit.scale <= mode.height);
        prop_assert!(!view.direct || view.line_length == 5376);
    }
}
