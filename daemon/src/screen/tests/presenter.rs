//! What is shown, and when.

use std::sync::Arc;
use std::time::Duration;

use vidcompat_proto::Errno;
use vidcompat_proto::abi::fb::{ColorMap, VarScreenInfo};

use super::fake::{Fake, FakeOutput, HEIGHT, WIDTH};
use super::{options, put};
use crate::backend::framebuffer::FramebufferFile;
use crate::backend::output::Hidden;
use crate::screen::file::ScreenFile;
use crate::screen::present::Presenter;
use crate::screen::{Desk, Screen, ScreenOptions};
use crate::sys::SteadyMemory;

/// A screen whose presenter takes a step when the test says so.
struct Stage {
    fake: Fake,
    desk: Arc<Desk>,
    presenter: Presenter,
}

impl Stage {
    fn new(options: &ScreenOptions, prepare: impl FnOnce(&Fake)) -> Self {
        let fake = Fake::default();
        prepare(&fake);
        let (desk, presenter) = Screen::on(options, FakeOutput::of(&fake)).expect("a screen");
        Self {
            fake,
            desk,
            presenter,
        }
    }

    fn open(&self) -> ScreenFile {
        ScreenFile::new(&self.desk, libc::O_RDWR)
    }

    /// How long the presenter would wait then, and what it has told the output.
    fn step(&mut self) -> (Option<Duration>, Vec<String>) {
        let turn = self.desk.state().turn();
        let next = self.presenter.step(&turn);
        let seen = crate::screen::desk::Seen::default();
        self.desk.settle(turn.said, &seen, self.presenter.failed);
        (next, self.fake.calls())
    }
}

/// Says something for which the presenter is waited, which this test is by itself: in another thread.
fn meanwhile<T: Send>(stage: &mut Stage, act: impl FnOnce() -> T + Send) -> (T, Vec<String>) {
    std::thread::scope(|scope| {
        let acting = scope.spawn(act);
        let mut calls = Vec::new();
        while !acting.is_finished() {
            std::thread::sleep(Duration::from_millis(2));
            let waited = {
                let state = stage.desk.state();
                state.said != state.done
            };
            if waited {
                calls.extend(stage.step().1);
            }
        }
        (acting.join().expect("done"), calls)
    })
}

fn mapped(file: &ScreenFile) -> SteadyMemory {
    let (fd, _) = file.map(0, 4096, 3, libc::MAP_SHARED as u32).expect("a file");
    SteadyMemory::map(fd, 4096).expect("mapped")
}

#[test]
fn nothing_is_taken_before_a_program_draws() {
    let mut stage = Stage::new(&options(None, 32), |_| ());
    let file = stage.open();
    let var = file.fbioget_vscreeninfo().expect("a mode");
    assert_eq!((var.xres, var.yres), (WIDTH, HEIGHT));
    assert_eq!(file.fbioget_fscreeninfo().expect("fix").id[..9], *b"fakedrmfb");
    assert!(put(&file, |var| var.activate = 2).is_ok());
    assert_eq!(stage.step(), (None, vec![]));
    drop(file);
    assert_eq!(stage.step(), (None, vec![]));
}

#[test]
fn what_is_written_is_shown_and_then_only_what_has_changed() {
    let mut stage = Stage::new(&options(None, 16), |fake| fake.seen().needs_damage = true);
    let file = stage.open();
    assert_eq!(file.write(2 * 33, &[0x1f, 0]), Ok(2));
    assert_eq!(stage.step().1, ["show_canvas 0"]);
    assert_eq!(
        (
            stage.fake.pixel(1, 1),
            stage.fake.pixel(2, 1),
            stage.fake.pixel(0, 0)
        ),
        (Some(0xff), Some(0), Some(0))
    );
    assert_eq!(stage.step().1, [""; 0]);
    file.write(2 * u64::from(WIDTH) * 5, &[0, 0xf8]).expect("room");
    file.write(2 * u64::from(WIDTH) * 7, &[0, 0xf8]).expect("room");
    assert_eq!(stage.step().1, ["damage 0,5 32x3"]);
    assert_eq!(
        (stage.fake.pixel(0, 5), stage.fake.pixel(0, 7)),
        (Some(0x00ff_0000), Some(0x00ff_0000))
    );
}

#[test]
fn a_small_picture_is_doubled_in_the_middle_and_the_rest_is_black() {
    let mut stage = Stage::new(&options(Some((12, 8)), 8), |fake| fake.seen().needs_damage = true);
    let file = stage.open();
    file.write(0, &[15; 12 * 8]).expect("room");
    assert_eq!(stage.step().1, ["show_canvas 0"]);
    for y in 0..HEIGHT {
        for x in 0..WIDTH {
            let inside = (4..28).contains(&x);
            assert_eq!(
                stage.fake.pixel(x, y),
                Some(if inside { 0x00ff_ffff } else { 0 }),
                "{x} {y}"
            );
        }
    }
    file.write(12, &[1]).expect("room");
    assert_eq!(stage.step().1, ["damage 4,2 24x2"]);
    assert_eq!(
        (stage.fake.pixel(4, 3), stage.fake.pixel(5, 2)),
        (Some(0xaa), Some(0xaa))
    );
    // Other colours: all is drawn anew, and nothing flips.
    let map = ColorMap {
        start: 15,
        red: vec![0],
        green: vec![0x4000],
        blue: vec![0],
        transp: None,
    };
    let (put, calls) = meanwhile(&mut stage, || file.fbioputcmap(&map));
    assert_eq!((put, calls), (Ok(()), vec!["damage 0,0 32x16".to_owned()]));
    assert_eq!(
        (stage.fake.pixel(6, 0), stage.fake.pixel(4, 2)),
        (Some(0x4000), Some(0xaa))
    );
}

#[test]
fn panning_flips_canvases_and_what_is_shown_is_never_the_one_drawn_on() {
    let mut stage = Stage::new(&options(None, 16), |_| ());
    let file = stage.open();
    let (_, calls) = meanwhile(&mut stage, || {
        put(&file, |var| var.yres_virtual = 2 * HEIGHT).expect("room")
    });
    assert_eq!(calls, ["show_canvas 0"]);
    let mut var = file.fbioget_vscreeninfo().expect("a mode");
    for (turn, colour) in [0x1fu16, 0xf800, 0x07e0, 0xffff, 0].into_iter().enumerate() {
        var.yoffset = if turn % 2 == 0 { HEIGHT } else { 0 };
        let line = u64::from(WIDTH * 2);
        let pixels: Vec<u8> = std::iter::repeat_n(colour.to_le_bytes(), (WIDTH * HEIGHT) as usize)
            .flatten()
            .collect();
        file.write(line * u64::from(var.yoffset), &pixels).expect("room");
        let (panned, calls) = meanwhile(&mut stage, || file.fbiopan_display(&mut var.clone()));
        assert_eq!((panned, calls), (Ok(()), vec!["flip 0".to_owned()]));
        let expected = [0xff, 0x00ff_0000, 0xff00, 0x00ff_ffff, 0][turn];
        for y in 0..HEIGHT {
            assert_eq!(stage.fake.pixel(y, y), Some(expected), "{turn} {y}");
        }
        // The canvas in front is the one that is kept up to date.
        file.write(line * u64::from(var.yoffset), &[0x1f, 0])
            .expect("room");
        stage.step();
        assert_eq!(stage.fake.pixel(0, 0), Some(0xff));
    }
}

#[test]
fn another_mode_is_drawn_before_it_is_shown() {
    let mut stage = Stage::new(&options(None, 32), |_| ());
    let file = stage.open();
    file.write(0, &[0xff; 32 * 16 * 4]).expect("room");
    stage.step();
    let (_, calls) = meanwhile(&mut stage, || {
        put(&file, |var| {
            (var.xres, var.yres, var.xres_virtual, var.yres_virtual) = (16, 12, 16, 12)
        })
        .expect("a mode")
    });
    assert_eq!(calls, ["show_canvas 1"]);
    assert_eq!(stage.fake.pixel(15, 11), Some(0x00ff_ffff));
}

#[test]
fn while_somebody_has_it_mapped_it_is_looked_at_less_and_less_until_something_changes() {
    let mut stage = Stage::new(&options(None, 32), |_| ());
    let file = stage.open();
    let memory = mapped(&file);
    let (next, calls) = stage.step();
    assert_eq!(
        (next, calls),
        (Some(Duration::from_millis(50)), vec!["show_canvas 0".to_owned()])
    );
    memory.write(0, &[1, 2, 3]);
    assert_eq!(stage.step().0, Some(Duration::from_millis(10)));
    assert_eq!(stage.fake.pixel(0, 0), Some(0x0003_0201));
    let waits: Vec<_> = (0..4)
        .map(|_| stage.step().0.expect("a wait").as_millis())
        .collect();
    assert_eq!(waits, [20, 40, 50, 50]);
    memory.write(0, &[4]);
    assert_eq!(stage.step().0, Some(Duration::from_millis(10)));
    drop(memory);
    // Nobody can draw unheard any more: only whether it is still seen is asked.
    assert_eq!(stage.step().0, Some(Duration::from_millis(500)));
}

#[test]
fn a_mapping_keeps_the_screen_after_the_node_was_closed() {
    let mut stage = Stage::new(&options(None, 32), |fake| fake.seen().console = true);
    let file = stage.open();
    let memory = mapped(&file);
    stage.step();
    drop(file);
    memory.write(0, &[9]);
    assert!(stage.step().0.is_some());
    assert_eq!(stage.fake.pixel(0, 0), Some(9));
    drop(memory);
    assert_eq!(stage.step(), (None, vec!["give_back".to_owned()]));
    assert_eq!(stage.step(), (None, vec![]));
}

#[test]
fn the_last_close_gives_the_screen_back_to_a_console_unless_the_picture_is_to_stay() {
    for (keep, console, stays) in [
        (None, true, false),
        (None, false, true),
        (Some(true), true, true),
        (Some(false), false, false),
    ] {
        let options = ScreenOptions {
            keep,
            ..options(None, 32)
        };
        let mut stage = Stage::new(&options, |fake| fake.seen().console = console);
        let (file, other) = (stage.open(), stage.open());
        file.write(0, &[9]).expect("room");
        stage.step();
        drop(other);
        assert_eq!(stage.step().1, [""; 0]);
        // What was written last is seen, if it stays.
        file.write(0, &[7]).expect("room");
        drop(file);
        let (_, calls) = stage.step();
        assert_eq!(calls.contains(&"give_back".to_owned()), !stays);
        assert_eq!(stage.fake.pixel(0, 0), stays.then_some(7));
    }
}

#[test]
fn a_hidden_screen_is_tried_again_and_drawn_anew() {
    let mut stage = Stage::new(&options(None, 32), |_| ());
    let file = stage.open();
    let memory = mapped(&file);
    stage.step();
    stage.fake.seen().hidden = Some(Hidden::Busy);
    memory.write(0, &[5]);
    assert_eq!(stage.step(), (Some(Duration::from_millis(300)), vec![]));
    assert_eq!(stage.fake.pixel(0, 0), None);
    assert_eq!(
        stage.step(),
        (Some(Duration::from_millis(300)), vec!["show_canvas 0".to_owned()])
    );
    // A program that pans meanwhile is not kept waiting, and what it says counts later.
    put(&file, |var| var.activate = 2).expect("a question");
    memory.write(4 * 32, &[6]);
    stage.fake.seen().hidden = None;
    assert_eq!(stage.step().1, ["show_canvas 0"]);
    assert_eq!(
        (stage.fake.pixel(0, 0), stage.fake.pixel(0, 1)),
        (Some(5), Some(6))
    );
}

#[test]
fn a_dark_screen_is_not_drawn_and_comes_back_with_what_was_drawn_meanwhile() {
    let mut stage = Stage::new(&options(None, 32), |_| ());
    let file = stage.open();
    file.write(0, &[1]).expect("room");
    stage.step();
    let (blanked, calls) = meanwhile(&mut stage, || file.fbioblank(4));
    assert_eq!((blanked, calls), (Ok(()), vec!["blank 4".to_owned()]));
    file.write(0, &[2]).expect("room");
    assert_eq!(stage.step().1, [""; 0]);
    assert_eq!((stage.fake.pixel(0, 0), stage.fake.seen().dark), (Some(1), true));
    let (_, calls) = meanwhile(&mut stage, || file.fbioblank(0));
    assert_eq!(calls, ["blank 0"]);
    assert_eq!((stage.fake.pixel(0, 0), stage.fake.seen().dark), (Some(2), false));
}

#[test]
fn direct_memory_is_shown_as_it_is_and_other_formats_are_converted_out_of_it() {
    let options = ScreenOptions {
        direct: true,
        ..options(None, 32)
    };
    let mut stage = Stage::new(&options, |fake| fake.seen().pans = true);
    let file = stage.open();
    assert_eq!(file.fbioget_fscreeninfo().expect("fix").line_length, 160);
    file.write(160, &[1, 2, 3, 4]).expect("room");
    assert_eq!(stage.step().1, ["show_direct 0 0 0"]);
    assert_eq!(stage.fake.pixel(0, 1), Some(0x0003_0201));
    let (_, calls) = meanwhile(&mut stage, || {
        put(&file, |var| (var.yres_virtual, var.yoffset) = (2 * HEIGHT, 1)).expect("room")
    });
    assert_eq!(calls, ["show_direct 0 0 1"]);
    assert_eq!(stage.fake.pixel(0, 0), Some(0x0003_0201));
    let (_, calls) = meanwhile(&mut stage, || {
        put(&file, |var| (var.yoffset, var.bits_per_pixel) = (0, 24)).expect("room")
    });
    assert_eq!(calls, ["show_canvas 0"]);
    file.write(0, &[1, 2, 3]).expect("room");
    stage.step();
    assert_eq!(stage.fake.pixel(0, 0), Some(0x0003_0201));
}

#[test]
fn direct_memory_that_cannot_be_panned_is_shown_elsewhere_by_canvas() {
    let options = ScreenOptions {
        direct: true,
        ..options(None, 32)
    };
    let mut stage = Stage::new(&options, |fake| fake.seen().needs_damage = true);
    let file = stage.open();
    let (_, calls) = meanwhile(&mut stage, || {
        put(&file, |var| var.yres_virtual = 2 * HEIGHT).expect("room")
    });
    assert_eq!(calls, ["show_direct 0 0 0"]);
    file.write(160 * 3, &[1]).expect("room");
    assert_eq!(stage.step().1, ["damage 0,3 32x1"]);
    let mut var = file.fbioget_vscreeninfo().expect("a mode");
    var.yoffset = 3;
    let (_, calls) = meanwhile(&mut stage, || file.fbiopan_display(&mut var).expect("room"));
    assert_eq!(calls, ["show_canvas 0"]);
    assert_eq!(stage.fake.pixel(0, 0), Some(1));
}

#[test]
fn who_may_only_read_direct_memory_sees_what_is_drawn_and_cannot_draw() {
    let options = ScreenOptions {
        direct: true,
        ..options(None, 32)
    };
    let mut stage = Stage::new(&options, |_| ());
    let (file, reader) = (stage.open(), ScreenFile::new(&stage.desk, libc::O_RDONLY));
    let (shared, private) = (libc::MAP_SHARED as u32, libc::MAP_PRIVATE as u32);
    assert!(reader.map(0, 4096, 3, shared).is_err());
    let (fd, _) = reader.map(0, 4096, 1, shared).expect("a copy that follows");
    let follows = std::fs::File::from(fd);
    let (fd, _) = file.map(0, 4096, 3, private).expect("the same copy");
    let private = std::fs::File::from(fd);
    file.write(0, &[1, 2, 3, 4]).expect("room");
    let (next, _) = stage.step();
    assert_eq!(next, Some(Duration::from_millis(50)));
    let read = |file: &std::fs::File| {
        let mut bytes = [9; 4];
        std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, 0).expect("bytes");
        bytes
    };
    assert_eq!((read(&follows), read(&private)), ([1, 2, 3, 4], [1, 2, 3, 4]));
    for copy in [&follows, &private] {
        assert!(std::os::unix::fs::FileExt::write_all_at(copy, &[7], 0).is_err());
    }
    // However often it is asked for: one object.
    let inode = |file: &std::fs::File| std::os::unix::fs::MetadataExt::ino(&file.metadata().expect("a file"));
    assert_eq!(inode(&follows), inode(&private));
}

#[test]
fn a_program_that_has_come_and_drawn_while_the_last_one_was_leaving_is_shown() {
    let mut stage = Stage::new(&options(None, 32), |fake| fake.seen().console = true);
    let file = stage.open();
    file.write(0, &[1]).expect("room");
    stage.step();
    drop(file);
    let turn = stage.desk.state().turn();
    let file = stage.open();
    let memory = mapped(&file);
    drop(file);
    memory.write(0, &[2]);
    drop(memory);
    stage.presenter.step(&turn);
    assert_eq!((stage.fake.calls(), stage.fake.pixel(0, 0)), (vec![], Some(2)));
    assert_eq!(stage.step(), (None, vec!["give_back".to_owned()]));
}

#[test]
fn a_mode_that_the_card_refuses_is_refused_and_the_one_before_is_shown_again() {
    let mut stage = Stage::new(&options(None, 32), |_| ());
    let file = stage.open();
    file.write(0, &[3]).expect("room");
    stage.step();
    let small = |var: &mut VarScreenInfo| {
        (var.xres, var.yres, var.xres_virtual, var.yres_virtual) = (16, 12, 16, 12);
    };
    stage.fake.seen().refused = Some((1, Errno::ENOMEM));
    let (said, calls) = meanwhile(&mut stage, || put(&file, small));
    assert_eq!(said.map(|var| var.xres), Err(Errno::ENOMEM));
    let calls = [calls, stage.step().1].concat();
    assert_eq!(calls, ["show_canvas 1", "show_canvas 0"]);
    let var = file.fbioget_vscreeninfo().expect("a mode");
    assert_eq!((var.xres, var.yres), (WIDTH, HEIGHT));
    assert_eq!(stage.fake.pixel(0, 0), Some(3));
    // Who only has to wait for his turn is not refused.
    stage.fake.seen().refused = None;
    stage.fake.seen().hidden = Some(Hidden::Busy);
    let (said, _) = meanwhile(&mut stage, || put(&file, small));
    assert_eq!(said.map(|var| var.xres), Ok(16));
    assert_eq!(file.fbioget_vscreeninfo().expect("a mode").xres, 16);
}

#[test]
fn who_asks_for_a_dma_buf_is_going_to_draw_and_is_shown() {
    let options = ScreenOptions {
        direct: true,
        ..options(None, 32)
    };
    let mut stage = Stage::new(&options, |_| ());
    let file = stage.open();
    let given = file.dma_buf().expect("a dma-buf");
    SteadyMemory::map(given, 4096).expect("mapped").write(0, &[6]);
    assert_eq!(stage.step().1, ["show_direct 0 0 0"]);
    assert_eq!(stage.fake.pixel(0, 0), Some(6));
}

#[test]
fn a_blank_ends_with_the_last_program() {
    let options = ScreenOptions {
        keep: Some(true),
        ..options(None, 32)
    };
    let mut stage = Stage::new(&options, |_| ());
    let (file, other) = (stage.open(), stage.open());
    file.write(0, &[8]).expect("room");
    stage.step();
    let (blanked, _) = meanwhile(&mut stage, || file.fbioblank(4));
    assert_eq!((blanked, stage.fake.seen().dark), (Ok(()), true));
    drop(file);
    assert_eq!(stage.desk.state().rules.blank(), 4);
    drop(other);
    assert_eq!(stage.desk.state().rules.blank(), 0);
    stage.step();
    assert_eq!(stage.fake.pixel(0, 0), Some(8));
    assert!(!stage.fake.seen().dark);
}

/// With its thread, and a program that draws without saying so.
#[test]
fn the_presenter_follows_by_itself_and_gives_the_screen_back_at_the_end() {
    let fake = Fake::default();
    let screen = Screen::new(options(None, 32), Some(FakeOutput::of(&fake))).expect("a screen");
    let file = crate::backend::framebuffer::Framebuffer::open(&*screen, libc::O_RDWR).expect("open");
    let (fd, _) = file.map(0, 4096, 3, libc::MAP_SHARED as u32).expect("a file");
    let memory = SteadyMemory::map(fd, 4096).expect("mapped");
    let until = |expected: Option<u32>| {
        (0..300).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            fake.pixel(0, 0) == expected
        })
    };
    assert!(until(Some(0)));
    for colour in 1..4u8 {
        memory.write(0, &[colour]);
        assert!(until(Some(u32::from(colour))), "{colour}");
    }
    drop((file, memory));
    // Without a console the picture stays.
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(fake.pixel(0, 0), Some(3));
    drop(screen);
    assert_eq!(fake.calls().last().map(String::as_str), Some("give_back"));
}
